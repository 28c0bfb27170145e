// A checking model of an SDR SDRAM chip: cell contents, bank states and every timing.
//
// Times are clock cycles of the chip; all timings are those of hw.memory.sdram_chip.SdramCycles.
// A violation ends the simulation with a line that names the cycle, the command and the rule. Data
// that were never written, and the bus while nobody drives it, are random.

#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <vector>

struct SdramParameters {
    long data_bits, rows, columns, cas_latency;
    long t_rp, t_rcd, t_wr, t_rfc, t_ras, t_rc, t_rrd, t_mrd, power_up, refresh_window;
    long refresh_rows;
};

// What the chip sees at a rising edge of its clock.
struct SdramPins {
    bool cke, cs_n, ras_n, cas_n, we_n;
    unsigned ba, a, dqm;
    uint32_t dq;
    bool dq_driven;
};

class SdramChip {
public:
    explicit SdramChip(const SdramParameters& parameters)
        : p_(parameters), cells_(kBanks * p_.rows * p_.columns), known_(cells_.size()) {}

    // Fills cells from address 0 on, as if they had been written.
    void preload(const std::vector<unsigned char>& bytes) {
        const size_t width = p_.data_bits / 8;
        for (size_t place = 0; place < bytes.size() && place / width < cells_.size(); ++place) {
            cells_[place / width] |= uint32_t(bytes[place]) << 8 * (place % width);
            known_[place / width] = true;
        }
    }

    // Takes the pins at a rising edge; returns what is on the data bus until the next one.
    uint32_t edge(const SdramPins& pins) {
        pins_ = pins;
        ++now_;
        const bool selected = pins.cke && !pins.cs_n;
        const unsigned command = selected ? !pins.ras_n << 2 | !pins.cas_n << 1 | !pins.we_n : 0;
        if (!pins.cke && now_ > 1 && ready_) fail("CKE", "must stay high");
        if (driving_ && pins.dq_driven) fail("READ", "the controller drives the data bus too");
        write_data();
        switch (command) {
            case 0: break;                                  // no operation
            case 0b100: activate(); break;
            case 0b010: begin_burst(false); break;
            case 0b011: begin_burst(true); break;
            case 0b101: precharge(); break;
            case 0b110: refresh(); break;
            case 0b111: load_mode(); break;
            case 0b001: burst_ = {}; break;                 // BURST TERMINATE
        }
        if (command == 0b011) write_data_of_command();
        check_refresh();
        return read_data();
    }

private:
    static constexpr unsigned kBanks = 4;
    static constexpr long kNever = -1'000'000;
    static constexpr long kPostponed = 9;       // refresh intervals between two, at most

    struct Bank {
        long row = -1;
        long activated = kNever, precharged = kNever, written = kNever;
    };
    struct Burst {
        bool active = false, write = false;
        unsigned bank = 0, column = 0;
        long row = 0, done = 0, began = 0;
    };
    struct Answer {
        long when;
        uint32_t word;
        bool known;
    };

    void fail(const char* command, const char* rule) const {
        std::fprintf(stderr, "SDRAM, cycle %ld: %s of bank %u: %s\n", now_, command, pins_.ba,
                     rule);
        std::exit(3);
    }

    void since(const char* command, long event, long wanted, const char* rule) const {
        if (now_ - event < wanted) fail(command, rule);
    }

    void idle(const char* command) const {
        for (const Bank& bank : banks_) {
            if (bank.row >= 0) fail(command, "a bank is open");
            since(command, bank.precharged, p_.t_rp, "tRP");
        }
    }

    void any(const char* command) const {
        since(command, 0, p_.power_up, "power-up");
        since(command, refreshed_, p_.t_rfc, "tRFC");
        since(command, mode_loaded_, p_.t_mrd, "tMRD");
    }

    void activate() {
        any("ACTIVE");
        if (!ready_) fail("ACTIVE", "the mode register is not loaded");
        Bank& bank = banks_[pins_.ba];
        if (bank.row >= 0) fail("ACTIVE", "the bank is open");
        since("ACTIVE", bank.precharged, p_.t_rp, "tRP");
        since("ACTIVE", bank.activated, p_.t_rc, "tRC");
        for (const Bank& other : banks_) since("ACTIVE", other.activated, p_.t_rrd, "tRRD");
        if (pins_.a >= p_.rows) fail("ACTIVE", "there is no such row");
        bank.row = pins_.a;
        bank.activated = now_;
    }

    void begin_burst(bool write) {
        const char* command = write ? "WRITE" : "READ";
        any(command);
        const Bank& bank = banks_[pins_.ba];
        if (bank.row < 0) fail(command, "the bank is closed");
        since(command, bank.activated, p_.t_rcd, "tRCD");
        if (pins_.a >> 10 & 1) fail(command, "auto precharge is not modelled");
        const unsigned column = (pins_.a & 0x3ff) | (pins_.a >> 11 & 1) << 10;
        if (column >= p_.columns) fail(command, "there is no such column");
        burst_ = {true, write, pins_.ba, column, bank.row, 0, now_};
    }

    size_t cell() const {
        const long wrapped = burst_length_ ? (burst_.column & ~(burst_length_ - 1))
            | ((burst_.column + burst_.done) & (burst_length_ - 1))
            : (burst_.column + burst_.done) % p_.columns;
        return (burst_.row * kBanks + burst_.bank) * p_.columns + wrapped;
    }

    // A burst of writes that goes on, or of reads: the word of this cycle.
    void write_data() {
        if (!burst_.active) return;
        if (burst_length_ && burst_.done == burst_length_) {
            burst_.active = false;
            return;
        }
        if (burst_.write && burst_.began != now_) take_word();
    }

    void write_data_of_command() { take_word(); }

    void take_word() {
        if (!pins_.dq_driven) fail("WRITE", "nobody drives the data bus");
        const size_t place = cell();
        for (unsigned byte = 0; byte < p_.data_bits / 8; ++byte) {
            if (pins_.dqm >> byte & 1) continue;
            const uint32_t mask = uint32_t{0xff} << 8 * byte;
            cells_[place] = (cells_[place] & ~mask) | (pins_.dq & mask);
            known_[place] = true;
        }
        banks_[burst_.bank].written = now_;
        ++burst_.done;
    }

    uint32_t read_data() {
        if (burst_.active && !burst_.write && (!burst_length_ || burst_.done < burst_length_)) {
            if (banks_[burst_.bank].row != burst_.row) {
                burst_.active = false;              // closed: what is on its way still comes
            } else {
                const size_t place = cell();
                answers_.push_back({now_ + p_.cas_latency - 1, cells_[place], known_[place]});
                ++burst_.done;
            }
        }
        // A word leaves after CAS latency - 1 edges and is there at the next one.
        while (!answers_.empty() && answers_.front().when < now_) answers_.pop_front();
        const uint32_t noise = random();
        driving_ = !answers_.empty() && answers_.front().when == now_;
        if (!driving_) return noise;
        return answers_.front().known ? answers_.front().word : noise;
    }

    void precharge() {
        any("PRECHARGE");
        const bool all = pins_.a >> 10 & 1;
        for (unsigned number = 0; number < kBanks; ++number) {
            if (!all && number != pins_.ba) continue;
            Bank& bank = banks_[number];
            if (bank.row >= 0) {
                since("PRECHARGE", bank.activated, p_.t_ras, "tRAS");
                since("PRECHARGE", bank.written, p_.t_wr, "tWR");
                if (burst_.active && burst_.write && burst_.bank == number)
                    burst_.active = false;
            }
            bank.row = -1;
            bank.precharged = now_;
        }
        precharged_all_ |= all;
    }

    void refresh() {
        any("AUTO REFRESH");
        if (!precharged_all_) fail("AUTO REFRESH", "PRECHARGE ALL must come first");
        idle("AUTO REFRESH");
        refreshed_ = now_;
        ++refreshes_;
        times_.push_back(now_);
        if (long(times_.size()) > p_.refresh_rows) {
            if (ready_ && now_ - times_.front() > p_.refresh_window)
                fail("AUTO REFRESH", "too few in 64 ms");
            times_.pop_front();
        }
    }

    void check_refresh() const {
        if (ready_ && now_ - refreshed_ > kPostponed * p_.refresh_window / p_.refresh_rows)
            fail("AUTO REFRESH", "late by more than eight intervals");
    }

    void load_mode() {
        any("LOAD MODE REGISTER");
        idle("LOAD MODE REGISTER");
        if (refreshes_ < 2) fail("LOAD MODE REGISTER", "two AUTO REFRESH must come first");
        const unsigned length = pins_.a & 7, latency = pins_.a >> 4 & 7;
        if (length > 3 && length != 7) fail("LOAD MODE REGISTER", "there is no such burst length");
        if (latency != p_.cas_latency) fail("LOAD MODE REGISTER", "another CAS latency");
        if (pins_.a & 8) fail("LOAD MODE REGISTER", "interleaved bursts are not modelled");
        if (pins_.a >> 9 & 1) fail("LOAD MODE REGISTER", "single writes are not modelled");
        burst_length_ = length == 7 ? 0 : 1 << length;
        mode_loaded_ = now_;
        ready_ = true;
    }

    uint32_t random() {
        seed_ ^= seed_ << 13;
        seed_ ^= seed_ >> 17;
        seed_ ^= seed_ << 5;
        return p_.data_bits == 32 ? seed_ : seed_ & 0xffff;
    }

    const SdramParameters p_;
    std::vector<uint32_t> cells_;
    std::vector<bool> known_;
    Bank banks_[kBanks];
    Burst burst_;
    std::deque<Answer> answers_;
    std::deque<long> times_;
    SdramPins pins_{};
    long now_ = 0, refreshed_ = kNever, mode_loaded_ = kNever;
    long burst_length_ = 1;
    uint64_t refreshes_ = 0;
    uint32_t seed_ = 2463534242u;
    bool precharged_all_ = false, ready_ = false;
    bool driving_ = false;              // since the edge before
};
