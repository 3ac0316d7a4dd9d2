"""XXH3, 64 bits, with seed: appendix A of FORMAT.md, word for word (a test compares the two).

`python3 tests/xxh3.py` checks it against the known answers of the reference's own sanity test.
"""

M = 2**64 - 1
P1, P2, P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P4, P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
Q1, Q2, Q3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e")

def u32(b, i): return int.from_bytes(b[i:i+4], "little")
def u64(b, i): return int.from_bytes(b[i:i+8], "little")
def rotl(x, n): return (x << n | x >> (64 - n)) & M
def fold(a, b): p = a * b; return (p ^ p >> 64) & M
def swap(x, n): return int.from_bytes(x.to_bytes(n, "little"), "big")
def avalanche(h): h ^= h >> 37; h = h * 0x165667919E3779F9 & M; return h ^ h >> 32
def avalanche64(h):
    h ^= h >> 33; h = h * P2 & M; h ^= h >> 29; h = h * P3 & M; return h ^ h >> 32

def xxh3_64(d, seed=0):
    n, s = len(d), SECRET
    def mix(i, j):  # 16 bytes of input at i with 16 of the secret at j
        return fold(u64(d, i) ^ (u64(s, j) + seed & M), u64(d, i + 8) ^ (u64(s, j + 8) - seed & M))
    if n == 0: return avalanche64(seed ^ u64(s, 56) ^ u64(s, 64))
    if n <= 3:
        x = d[0] << 16 | d[n >> 1] << 24 | d[n - 1] | n << 8
        return avalanche64(x ^ ((u32(s, 0) ^ u32(s, 4)) + seed & M))
    if n <= 8:
        seed ^= swap(seed & 0xFFFFFFFF, 4) << 32
        h = u32(d, n - 4) + (u32(d, 0) << 32) ^ ((u64(s, 8) ^ u64(s, 16)) - seed & M)
        h ^= rotl(h, 49) ^ rotl(h, 24)
        h = h * 0x9FB21C651E98DF25 & M
        h ^= (h >> 35) + n
        h = h * 0x9FB21C651E98DF25 & M
        return h ^ h >> 28
    if n <= 16:
        lo = u64(d, 0) ^ ((u64(s, 24) ^ u64(s, 32)) + seed & M)
        hi = u64(d, n - 8) ^ ((u64(s, 40) ^ u64(s, 48)) - seed & M)
        return avalanche(n + swap(lo, 8) + hi + fold(lo, hi) & M)
    if n <= 128:
        h = n * P1
        for i in reversed(range((n - 1) // 32 + 1)):
            h += mix(16 * i, 32 * i) + mix(n - 16 * (i + 1), 32 * i + 16)
        return avalanche(h & M)
    if n <= 240:
        h = n * P1 + sum(mix(16 * i, 16 * i) for i in range(8))
        h = avalanche(h & M) + sum(mix(16 * i, 16 * (i - 8) + 3) for i in range(8, n // 16))
        return avalanche(h + mix(n - 16, 119) & M)
    s = b"".join((u64(s, i) + (seed if i % 16 == 0 else -seed) & M).to_bytes(8, "little")
                 for i in range(0, 192, 8))
    acc = [Q3, P1, P2, P3, P4, Q2, P5, Q1]
    def stripe(i, j):  # 64 bytes of input at i with 64 of the secret at j
        for k in range(8):
            v = u64(d, i + 8 * k)
            x = v ^ u64(s, j + 8 * k)
            acc[k ^ 1] = acc[k ^ 1] + v & M
            acc[k] = acc[k] + (x & 0xFFFFFFFF) * (x >> 32) & M
    for i in range((n - 1) // 64):
        stripe(64 * i, 8 * (i % 16))
        if i % 16 == 15:
            for k in range(8):
                acc[k] = (acc[k] ^ acc[k] >> 47 ^ u64(s, 128 + 8 * k)) * Q1 & M
    stripe(n - 64, 121)
    h = n * P1 + sum(fold(acc[2*k] ^ u64(s, 11 + 16*k), acc[2*k+1] ^ u64(s, 19 + 16*k)) for k in range(4))
    return avalanche(h & M)


# (length, with seed 0, with seed 0x9E3779B185EBCA8D) of the reference's test input; every branch is among them.
KNOWN = [
    (0, 0x2D06800538D394C2, 0xA8A6B918B2F0364A),
    (1, 0xC44BDFF4074EECDB, 0x032BE332DD766EF8),
    (6, 0x27B56A84CD2D7325, 0x84589C116AB59AB9),
    (12, 0xA713DAF0DFBB77E7, 0xE7303E1B2336DE0E),
    (24, 0xA3FE70BF9D3510EB, 0x850E80FC35BDD690),
    (48, 0x397DA259ECBA1F11, 0xADC2CBAA44ACC616),
    (80, 0xBCDEFBBB2C47C90A, 0xC6DD0CB699532E73),
    (195, 0xCD94217EE362EC3A, 0xBA68003D370CB3D9),
    (403, 0xCDEB804D65C6DEA4, 0x6259F6ECFD6443FD),
    (512, 0x617E49599013CB6B, 0x3CE457DE14C27708),
    (2048, 0xDD59E2C3A5F038E0, 0x66F81670669ABABC),
    (2240, 0x6E73A90539CF2948, 0x757BA8487D1B5247),
]


def self_check():
    """Raises AssertionError if one of the known answers does not come out."""
    prime, generator, data = 0x9E3779B185EBCA8D, Q1, bytearray()
    for _ in range(KNOWN[-1][0]):
        data.append(generator >> 56)
        generator = generator * prime & M
    for length, plain, seeded in KNOWN:
        assert xxh3_64(data[:length]) == plain, f"XXH3 of {length} bytes"
        assert xxh3_64(data[:length], prime) == seeded, f"XXH3 of {length} bytes with seed"


if __name__ == "__main__":
    self_check()
    print(f"{2 * len(KNOWN)} known answers are right")
