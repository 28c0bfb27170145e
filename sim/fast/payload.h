// Fields of payloads, as Verilator stores them: up to 64 bits are an integer, more are an array of
// 32-bit words.

#pragma once

#include <cstdint>
#include <cstring>

#include "verilated.h"

struct Field {
    unsigned offset, width;
};

// The field must be 0 before.
template <typename Payload>
void set(Payload& payload, Field field, uint64_t value) {
    if (field.width) payload |= static_cast<Payload>(value) << field.offset;
}

// As above; the field has at most 32 bits.
template <std::size_t words>
void set(VlWide<words>& payload, Field field, uint64_t value) {
    if (!field.width) return;
    const unsigned word = field.offset / 32, bit = field.offset % 32;
    payload[word] |= static_cast<uint32_t>(value << bit);
    if (bit + field.width > 32) payload[word + 1] |= static_cast<uint32_t>(value >> (32 - bit));
}

// The field has at most 32 bits.
template <typename Payload>
uint32_t get(const Payload& payload, Field field) {
    return static_cast<uint32_t>((payload >> field.offset) & ((uint64_t{1} << field.width) - 1));
}

template <std::size_t words>
uint32_t get(const VlWide<words>& payload, Field field) {
    const unsigned word = field.offset / 32, bit = field.offset % 32;
    uint64_t value = payload[word];
    if (bit + field.width > 32) value |= static_cast<uint64_t>(payload[word + 1]) << 32;
    return static_cast<uint32_t>((value >> bit) & ((uint64_t{1} << field.width) - 1));
}

// As a two's complement integer.
template <typename Payload>
int32_t get_signed(const Payload& payload, Field field) {
    const unsigned above = 32 - field.width;
    return static_cast<int32_t>(get(payload, field) << above) >> above;
}

template <typename Payload>
void clear(Payload& payload) {
    std::memset(&payload, 0, sizeof payload);
}
