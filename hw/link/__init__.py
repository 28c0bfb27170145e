"""The wire to the host: UART, frames."""
