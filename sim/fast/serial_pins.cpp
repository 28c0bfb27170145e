// Moves bytes between a pseudo-terminal and the serial pins of the simulated board, and puts a
// checked SDRAM chip behind the others, if it has them (SDRAM is defined).
// Arguments: file descriptor of the terminal's master side, clock cycles per bit; with an SDRAM the
// periods of the board's clock and of the chip's in the same unit (the same, if MEMORY_CLOCK is not
// defined), the address pin that is stuck at 0 or -1, the phase of the chip's clock, the number of
// phases and for each the cycles that the pins add to the CAS latency, or -1 where nothing is right;
// the fields of SdramParameters, and a file from which the chip is filled. With PHASE defined the
// board moves the phase.

#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <deque>

#include "Vboard.h"
#ifdef SDRAM
#include "sdram_chip.h"
#endif
#include "verilated.h"

namespace {

constexpr int kChunk = 512;        // bytes taken from the terminal at once
constexpr int kBusyCycles = 64;    // between looks at the terminal
constexpr int kIdleCycles = 4096;  // the same when both lines have been idle for as long
constexpr int kIdleMilliseconds = 1;

#ifdef SDRAM

// Verilator writes two underscores so.
#define SDRAM_PIN(name) board.sdram___05F##name

constexpr int kSdramFields = sizeof(SdramParameters) / sizeof(long);

// The chip behind the registers of its pins, whose cycles are the delay of a phase.
class Sdram {
public:
    // Takes the arguments from the first of its own on; those of the chip follow the delays.
    explicit Sdram(char** arguments)
        : user_period_(std::atol(arguments[0])), period_(std::atol(arguments[1])),
          phase_(std::atol(arguments[3])), delays_(std::atol(arguments[4])),
          chip_(parameters(arguments + 5 + delays_.size())) {
        const long stuck = std::atol(arguments[2]);
        if (stuck >= 0) address_mask_ = ~(1u << stuck);
        for (size_t k = 0; k < delays_.size(); ++k) delays_[k] = std::atol(arguments[5 + k]);
        std::vector<unsigned char> bytes;
        if (std::FILE* file = std::fopen(arguments[5 + delays_.size() + kSdramFields], "rb")) {
            unsigned char chunk[1 << 16];
            while (const size_t count = std::fread(chunk, 1, sizeof chunk, file))
                bytes.insert(bytes.end(), chunk, chunk + count);
            std::fclose(file);
        }
        chip_.preload(bytes);
    }

    // Before the board's rising edge.
    void sample(const Vboard& board) {
        pins_.cke = SDRAM_PIN(cke);
        pins_.cs_n = SDRAM_PIN(cs_n);
        pins_.ras_n = SDRAM_PIN(ras_n);
        pins_.cas_n = SDRAM_PIN(cas_n);
        pins_.we_n = SDRAM_PIN(we_n);
        pins_.ba = SDRAM_PIN(ba);
        pins_.a = SDRAM_PIN(a) & address_mask_;
        pins_.dqm = SDRAM_PIN(dqm);
        pins_.dq = SDRAM_PIN(dq_o);
        pins_.dq_driven = SDRAM_PIN(dq_oe);
    }

    // Behind it.
    void drive(Vboard& board) {
        driven_.push_front(chip_.edge(pins_));
        driven_.resize(kMostDelay + 1);
        const long delay = delays_[phase_];
        // Where nothing is right, each bit is that of one cycle or of the next.
        noise_ = noise_ * 1664525u + 1013904223u;
        SDRAM_PIN(dq_i) = delay >= 0 ? driven_[delay]
                                     : (driven_[0] & noise_) | (driven_[1] & ~noise_);
    }

#ifdef PHASE
    // Behind an edge of the board's clock.
    void move_phase(const Vboard& board) {
        if (board.phase_step && !stepped_) {
            const size_t count = delays_.size();
            phase_ = (phase_ + (board.phase_back ? count - 1 : 1)) % count;
        }
        stepped_ = board.phase_step;
    }
#endif

#ifdef MEMORY_CLOCK
    // The edges of the chip's clock from one edge of the board's until the next one. Both rise at
    // once where the PLL makes them do so; then the board's comes first.
    void until_next_edge(Vboard& board) {
        now_ += user_period_;
        for (; edge_ < now_; edge_ += period_) {
            board.memory_clk = 0;
            board.eval();
            sample(board);
            board.memory_clk = 1;
            board.eval();
            drive(board);
        }
    }
#endif

private:
    static SdramParameters parameters(char** arguments) {
        SdramParameters found;
        long* field = &found.data_bits;
        for (int k = 0; k < kSdramFields; ++k) field[k] = std::atol(arguments[k]);
        return found;
    }

    static constexpr long kMostDelay = 7;

    const long user_period_, period_;
    long now_ = 0, edge_ = 0;
    size_t phase_;
    std::vector<long> delays_;
    SdramChip chip_;
    SdramPins pins_{};
    unsigned address_mask_ = ~0u;
    std::deque<uint32_t> driven_;
    uint32_t noise_ = 1;
    bool stepped_ = false;
};

constexpr int kArguments = 3 + 5 + 1 + kSdramFields + 1;     // at least: one phase
#else
constexpr int kArguments = 3;
#endif

}  // namespace

int main(int argc, char** argv) {
    if (argc < kArguments)
        return std::fprintf(stderr, "usage: %s TERMINAL DIVISOR [SDRAM...]\n", argv[0]), 2;
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

#ifdef SDRAM
    Sdram sdram{argv + 3};
#endif
    board.rx = 1;
    for (unsigned long cycle = 0;; ++cycle) {
        board.rst = cycle < 2;
        board.clk = 0;
        board.eval();
#if defined(SDRAM) && !defined(MEMORY_CLOCK)
        sdram.sample(board);
#endif
        board.clk = 1;
        board.eval();
#if defined(MEMORY_CLOCK)
        sdram.until_next_edge(board);
#elif defined(SDRAM)
        sdram.drive(board);
#endif
#ifdef PHASE
        sdram.move_phase(board);
#endif

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
