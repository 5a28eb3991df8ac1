/* Entropy-coded bytes. Nothing outside `in` is read and nothing outside `out` is written, whatever the bytes hold; what
   is not a whole and valid stream is refused. `table` is CODED_TABLE bytes of scratch, aligned to 2.

   stored   the bytes
   huffman  128 bytes: the length of each byte value's code, four bits each (0: none); then canonical codes, bit by bit
   rans     32 bytes: which byte values occur; 16 bits for the frequency of each, of 4096; then blocks of up to 2048
            values: a state of 32 bits, and 16 bits wherever it runs low (J. Duda, "Asymmetric numeral systems", 2013;
            F. Giesen, "Interleaved entropy coders", 2014). A block ends in the state that encoding started from. */
#define CODED_TABLE 5120
#define CODED_BLOCK 2048u
#define CODED_LOW 65536u

enum { CODED_STORED, CODED_HUFFMAN, CODED_RANS };

static int decode_stored(const uint8_t *in, size_t size, uint8_t *out, size_t count, size_t stride)
{
    if (size != count) return 0;
    for (size_t i = 0; i < count; ++i) out[i * stride] = in[i];
    return 1;
}

static int decode_huffman(const uint8_t *in, size_t size, uint8_t *out, size_t count, size_t stride, uint8_t *table)
{
    uint16_t *number = (uint16_t *)(void *)table; /* of codes of each length */
    uint8_t *values = table + 32;                 /* in the order of their codes */
    size_t at = 128;
    uint32_t used = 0, left = 1, bits = 0, held = 0;
    if (size < at) return 0;
    for (uint32_t length = 0; length < 16; ++length) number[length] = 0;
    for (uint32_t length = 1; length < 16; ++length) {
        for (uint32_t value = 0; value < 256; ++value) {
            if (((uint32_t)in[value >> 1] >> (value % 2 * 4) & 15u) == length) {
                values[used++] = (uint8_t)value;
                ++number[length];
            }
        }
        left *= 2;
        if (number[length] > left) return 0; /* more codes than there are bits for */
        left -= number[length];
    }
    for (size_t i = 0; i < count; ++i) {
        uint32_t code = 0, first = 0, before = 0, length = 1;
        for (; length < 16; ++length) {
            if (held == 0) {
                if (at == size) return 0;
                bits = in[at++];
                held = 8;
            }
            code |= bits >> --held & 1u;
            if (code - first < number[length]) break; /* codes of one length are successive numbers */
            before += number[length];
            first = (first + number[length]) << 1;
            code <<= 1;
        }
        if (length == 16) return 0;
        out[i * stride] = values[before + code - first];
    }
    return at == size;
}

static uint32_t coded_word(const uint8_t *in)
{
    return (uint32_t)in[0] | (uint32_t)in[1] << 8;
}

static int decode_rans(const uint8_t *in, size_t size, uint8_t *out, size_t count, size_t stride, uint8_t *table)
{
    uint16_t *frequency = (uint16_t *)(void *)table, *start = frequency + 256;
    uint8_t *value_at = table + 1024; /* [4096] */
    size_t at = 32;
    uint32_t total = 0;
    if (size < at) return 0;
    for (uint32_t value = 0; value < 256; ++value) {
        if (((uint32_t)in[value >> 3] >> (value & 7u) & 1u) == 0) continue;
        if (size - at < 2) return 0;
        const uint32_t share = coded_word(in + at);
        at += 2;
        if (share == 0 || share > 4096 - total) return 0;
        frequency[value] = (uint16_t)share;
        start[value] = (uint16_t)total;
        for (uint32_t k = 0; k < share; ++k) value_at[total++] = (uint8_t)value;
    }
    if (total != 4096) return 0;
    for (size_t begin = 0; begin < count; begin += CODED_BLOCK) {
        const size_t end = count - begin < CODED_BLOCK ? count : begin + CODED_BLOCK;
        if (size - at < 4) return 0;
        uint32_t state = coded_word(in + at) | coded_word(in + at + 2) << 16;
        at += 4;
        for (size_t i = begin; i < end; ++i) {
            const uint32_t slot = state & 4095u;
            const uint8_t value = value_at[slot];
            out[i * stride] = value;
            state = frequency[value] * (state >> 12) + slot - start[value];
            if (state < CODED_LOW) {
                if (size - at < 2) return 0;
                state = state << 16 | coded_word(in + at);
                at += 2;
            }
        }
        if (state != CODED_LOW) return 0;
    }
    return at == size;
}

/* `count` bytes at out[0], out[stride], ... from `size` bytes at `in`. Returns whether they are a valid stream. */
static int decode_coded(
    int method, const uint8_t *in, size_t size, uint8_t *out, size_t count, size_t stride, uint8_t *table)
{
    if (method == CODED_HUFFMAN) return decode_huffman(in, size, out, count, stride, table);
    if (method == CODED_RANS) return decode_rans(in, size, out, count, stride, table);
    return method == CODED_STORED && decode_stored(in, size, out, count, stride);
}
