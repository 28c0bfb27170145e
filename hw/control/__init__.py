"""Program, decoder, dispatch and prefetch."""
