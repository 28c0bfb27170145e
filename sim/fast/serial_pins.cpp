// Moves bytes between a pseudo-terminal and the serial pins of the simulated board.
// Arguments: file descriptor of the terminal's master side, clock cycles per bit.

#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <deque>

#include "Vboard.h"
#include "verilated.h"

namespace {

constexpr int kChunk = 512;        // bytes taken from the terminal at once
constexpr int kBusyCycles = 64;    // between looks at the terminal
constexpr int kIdleCycles = 4096;  // the same when both lines have been idle for as long
constexpr int kIdleMilliseconds = 1;

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return std::fprintf(stderr, "usage: %s TERMINAL DIVISOR\n", argv[0]), 2;
    const int terminal = std::atoi(argv[1]);
    const int divisor = std::atoi(argv[2]);
    const pid_t parent = getppid();
    VerilatedContext context;
    Vboard board{&context};

    std::deque<unsigned char> incoming;
    int send_bits = 0, send_timer = 0;     // towards rx: start bit, 8 data bits, stop bit
    unsigned send_shift = 0;
    int receive_bits = 0, receive_timer = 0;  // from tx
    unsigned receive_shift = 0;
    long idle = 0;

    board.rx = 1;
    for (unsigned long cycle = 0;; ++cycle) {
        board.rst = cycle < 2;
        board.clk = 0;
        board.eval();
        board.clk = 1;
        board.eval();

        if (send_timer > 0) {
            --send_timer;
        } else if (send_bits > 0) {
            board.rx = send_shift & 1;
            send_shift >>= 1;
            --send_bits;
            send_timer = divisor - 1;
        } else if (!incoming.empty()) {
            send_shift = incoming.front() << 1 | 0x200;
            incoming.pop_front();
            send_bits = 10;
        }

        if (receive_bits == 0) {
            if (!board.tx) {
                receive_bits = 9;
                receive_timer = divisor + divisor / 2 - 1;
            }
        } else if (receive_timer-- == 0) {
            receive_timer = divisor - 1;
            receive_shift = receive_shift >> 1 | board.tx << 8;
            if (--receive_bits == 0) {
                const unsigned char byte = receive_shift & 0xff;
                if (!(receive_shift >> 8)) return std::fprintf(stderr, "no stop bit on tx\n"), 1;
                if (write(terminal, &byte, 1) != 1) return 1;
            }
        }

        // Look often while something may come, rarely and with a pause while nothing does.
        const bool quiet = incoming.empty() && send_bits == 0 && receive_bits == 0;
        idle = quiet ? idle + 1 : 0;
        if (incoming.empty() && cycle % (idle < kIdleCycles ? kBusyCycles : kIdleCycles) == 0) {
            pollfd ready{terminal, POLLIN, 0};
            const int wait = idle >= kIdleCycles ? kIdleMilliseconds : 0;
            if (poll(&ready, 1, wait) > 0 && (ready.revents & POLLIN)) {
                unsigned char chunk[kChunk];
                const ssize_t count = read(terminal, chunk, sizeof chunk);
                if (count > 0) incoming.insert(incoming.end(), chunk, chunk + count);
            } else if (ready.revents & POLLHUP) {
                usleep(1000 * kIdleMilliseconds);  // the port is closed: someone may open it again
            }
            if (getppid() != parent) return 0;
        }
    }
}
