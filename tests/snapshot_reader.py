#!/usr/bin/env python3
"""An independent reader of Stillframe snapshot files, written from FORMAT.md alone.

    python3 tests/snapshot_reader.py FILE

checks everything that makes a file valid (section 9), then prints its entries as JSON lines, expired ones too, and a
summary as the last. Exit 0 if the file is valid; else exit 1, `FILE at byte N: what` on standard error, and no entries:
N is where the structure that is wrong begins. "§" below are sections of FORMAT.md.
"""

import json
import sys
import zlib
from itertools import islice
from struct import calcsize, iter_unpack, unpack_from
from typing import NamedTuple

from xxh3 import xxh3_64

# Limits (§1) and kinds of blocks (§5).
MAX_KEY, MAX_VALUE, MAX_INLINE, MAX_CHUNK, MAX_NAME = 65_540, 2**30, 16_384, 65_536, 255
LEAVES, CHUNK, INDEX, ROOT = 1, 2, 3, 4
MAX_RAW = {LEAVES: 1_048_576, CHUNK: MAX_CHUNK, INDEX: 4_194_304, ROOT: 2**32 - 33}
RAW, LZ4 = 0, 1

HEADER = "<8s I I 16s 16s Q Q B 27s I"  # §4
FRAME = "<B B H I I I Q I I"  # §5
LEAF_HEAD, LEAF_ROW, LARGE_ROW = "<8I", "<Q Q I I I I", "<Q Q"  # §6
ENTRY, SPAN = "<Q Q Q Q Q I I I I", "<16s Q 16s Q Q"  # §7
FOOTER = "<16s 16s 10Q I I I 24s I 8s"  # §8


class Damage(Exception):
    """The file is not valid: args are an offset and what is wrong there."""


def need(holds, at, what):
    if not holds:
        raise Damage(at, what)


class Parts:
    """Takes the parts of a body one after the other; `at` is where its block stands, for messages."""

    def __init__(self, body, at):
        self.body, self.at, self.pos = body, at, 0

    def take(self, size):
        need(size <= len(self.body) - self.pos, self.at, "a part is longer than the body")
        self.pos += size
        return self.body[self.pos - size : self.pos]

    def rows(self, layout, count):
        return list(iter_unpack(layout, self.take(count * calcsize(layout))))

    def varint(self):  # §1
        value = 0
        for group in range(5):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << 7 * group
            if byte < 0x80:
                need(value < 2**32 and (byte or group == 0), self.at, "a varint is too large or too long")
                return value
        raise Damage(self.at, "a varint is too long")

    def end(self):
        need(self.pos == len(self.body), self.at, "the body is longer than its parts")


def unlz4(stored, raw_length, at):
    """Appendix B."""
    parts, out = Parts(stored, at), bytearray()

    def length(nibble):
        more = 255 if nibble == 15 else 0
        while more == 255:
            more = parts.take(1)[0]
            nibble += more
        need(nibble <= raw_length - len(out), at, "LZ4: more bytes than the raw length")
        return nibble

    while True:
        token = parts.take(1)[0]
        out += parts.take(length(token >> 4))
        if parts.pos == len(stored):
            break
        offset = int.from_bytes(parts.take(2), "little")
        need(1 <= offset <= len(out), at, "LZ4: a match starts before the output")
        match, start = length(token & 15) + 4, len(out) - offset
        copied = out[start : start + match]
        out += (copied * -(-match // len(copied)))[:match]  # again and again if it overlaps what it produces
    need(len(out) == raw_length, at, "LZ4: another number of bytes than the raw length")
    return bytes(out)


class Block(NamedTuple):
    at: int
    ordinal: int
    kind: int
    items: int
    length: int
    checksum: int
    body: bytes


def read_block(data, at, end, file_id, ordinal):
    """The block whose frame starts at `at`: frame and block are valid (§5)."""
    need(at + 32 <= end, at, "a frame does not fit before the footer")
    kind, codec, reserved, raw, stored, body_crc, place, items, checksum = unpack_from(FRAME, data, at)
    need(checksum == zlib.crc32(file_id + data[at : at + 28]), at, "the frame checksum is wrong")
    need(kind in MAX_RAW and codec in (RAW, LZ4), at, "unknown kind or codec")
    need(reserved == 0, at, "a reserved byte is not zero")
    need(1 <= raw <= MAX_RAW[kind], at, "the raw length is beyond its limit")
    need(1 <= stored <= raw <= 255 * stored, at, "stored and raw length do not fit each other")
    need(codec == LZ4 and kind in (LEAVES, CHUNK) or codec == RAW and stored == raw, at, "codec or length is wrong")
    need(place == ordinal, at, f"ordinal {place} in place {ordinal}")
    need(stored <= end - at - 32, at, "the body does not fit before the footer")
    body = data[at + 32 : at + 32 + stored]
    need(zlib.crc32(body) == body_crc, at, "the checksum of the body is wrong")
    body = unlz4(body, raw, at) if codec == LZ4 else body
    return Block(at, ordinal, kind, items, 32 + stored, checksum, body)


def read_large(chunks, length, chunk_bytes, value_hash, at):
    """The large value whose chunk blocks are next in `chunks` (§6), which loses them."""
    count = -(-length // MAX_CHUNK)
    need(32 * count - (-length // 255) <= chunk_bytes <= 32 * count + length, at, "chunk bytes do not fit the value")
    need(count <= len(chunks), at, "chunks of a large value are missing")
    own, chunks[:count] = chunks[:count], []
    for chunk in own:
        need(chunk.items == 0, chunk.at, "a chunk has items")
        need(len(chunk.body) == MAX_CHUNK or chunk is own[-1], chunk.at, "a chunk is too short")
    value = b"".join(chunk.body for chunk in own)
    need(len(value) == length, own[-1].at, "a large value has another length")
    need(sum(chunk.length for chunk in own) == chunk_bytes, own[0].at, "chunks have another length")
    need(xxh3_64(value) == value_hash, own[0].at, "the hash of a large value is wrong")
    return value


class Leaves(NamedTuple):
    """What a leaf block holds, and the totals that others state of it."""

    block: Block
    entries: list  # of (internal key, value, expiry)
    raw_bytes: int
    newest: int
    leaves: int
    low: bytes
    high: bytes  # empty: none
    fingerprint: int


def read_leaves(block, chunks):
    """A leaf block whose large values are in `chunks` (§6)."""
    at, parts = block.at, Parts(block.body, block.at)
    ((n_leaves, n, k, v, e, g, high_length, reserved),) = parts.rows(LEAF_HEAD, 1)
    need(n_leaves >= 1 and n == block.items and reserved == 0, at, "the head of a leaf block is wrong")
    table = parts.rows(LEAF_ROW, n_leaves)
    need(sum(row[2] for row in table) == n, at, "the leaf table does not sum to the entries")
    fences = [(parts.take(row[3]), parts.take(row[4])) for row in table]
    lows, high = [low for low, _ in fences], parts.take(high_length)
    fence_lengths = [length for row in table for length in row[3:5]]
    need(max([*fence_lengths, high_length]) <= MAX_KEY, at, "a fence or prefix is too long")
    all_fences = lows + [high] if high else lows
    need(all(a < b for a, b in zip(all_fences, all_fences[1:])), at, "fences do not ascend")
    highs = lows[1:] + [high]
    expiries = iter([expiry for (expiry,) in parts.rows("<Q", e)])
    large = iter(parts.rows(LARGE_ROW, g))
    key_lengths = [parts.varint() for _ in range(n)]
    value_lengths = [parts.varint() for _ in range(n)]
    keys, values = Parts(parts.take(k), at), Parts(parts.take(v), at)
    parts.end()
    need(sum(x & 1 for x in key_lengths) == e and sum(x >> 1 & 1 for x in key_lengths) == g, at, "flags miscounted")

    entries, fingerprint, lengths = [], 0, zip(key_lengths, value_lengths)
    for (_, stated, count, _, _, reserved), (low, prefix), high in zip(table, fences, highs):
        need(reserved == 0, at, "a reserved byte is not zero")
        previous, sum_of_leaf = None, 0
        for _ in range(count):
            key_length, length = next(lengths)
            key = prefix + keys.take(key_length >> 2)
            need(4 <= len(key) <= MAX_KEY, at, "a key has a wrong length")
            need(key > previous if previous is not None else key >= low, at, "keys do not ascend")
            need(length <= MAX_VALUE, at, "a value is too long")
            need((length > MAX_INLINE) == bool(key_length & 2), at, "a value is large or not against its length")
            expiry = next(expiries) if key_length & 1 else 0
            need(expiry > 0 or not key_length & 1, at, "an expiry is 0")
            if key_length & 2:
                value_hash, chunk_bytes = next(large)
                value = read_large(chunks, length, chunk_bytes, value_hash, at)
            else:
                value = values.take(length)
            sum_of_leaf += xxh3_64(key, xxh3_64(value) ^ expiry * 0x9E3779B97F4A7C15 % 2**64)  # §3
            entries.append((key, value, expiry))
            previous = key
        need(previous is None or not high or previous < high, at, "a key is not below the high fence")
        need(sum_of_leaf % 2**64 == stated, at, "the fingerprint of a leaf is wrong")
        fingerprint += stated
    keys.end()
    values.end()
    need(not chunks, at, "a chunk belongs to no large value")
    raw_bytes = sum(len(key) - 4 + len(value) for key, value, _ in entries)
    newest = max(row[0] for row in table)
    return Leaves(block, entries, raw_bytes, newest, n_leaves, lows[0], highs[-1], fingerprint)


def read_index(block):
    """Entries, each with its low fence behind it, and lineage spans of an index block or the root (§7)."""
    parts = Parts(block.body, block.at)
    ((n, s),) = parts.rows("<II", 1)
    need(n >= 1 and n == block.items, block.at, "the number of entries is wrong")
    need(s == 0 or block.kind == ROOT, block.at, "an index block has a lineage")
    rows, spans = parts.rows(ENTRY, n), parts.rows(SPAN, s)
    entries = [row[:-1] + (parts.take(row[-1]),) for row in rows]
    parts.end()
    need(all(a[-1] < b[-1] for a, b in zip(entries, entries[1:])), block.at, "fences do not ascend")
    return entries, spans


def check_catalogue(entries):
    """Names of the keyspaces by id (§3)."""
    names = {}
    for at, key, value, expire_at in entries:
        if key[:4] == bytes(4):
            space = int.from_bytes(value, "little")
            need(expire_at == 0, at, "a catalogue entry has an expiry")
            need(1 <= len(key) - 4 <= MAX_NAME and len(value) == 4, at, "a catalogue entry has a wrong length")
            need(space >= 1 and space not in names, at, "a keyspace has id 0 or that of another")
            try:
                names[space] = key[4:].decode()
            except UnicodeDecodeError:
                raise Damage(at, "the name of a keyspace is not UTF-8") from None
    return names


def read_snapshot(data):
    """Entries as (name of the keyspace or None, user key, value, expiry) and the summary of a valid file (§9)."""
    # Header, §4.
    need(data[:8] == b"\x89STF\r\n\x1a\n", 0, "not a snapshot file")
    need(len(data) >= 96 + 160, 0, "the file is too short")
    _, version, features, file_id, history, seq, time, codec, reserved, header_crc = unpack_from(HEADER, data)
    need(version == 1, 8, f"version {version} is unknown")
    need(zlib.crc32(data[:92]) == header_crc, 0, "the checksum of the header is wrong")
    need(features == 0 and codec in (RAW, LZ4) and not any(reserved), 0, "unknown features, codec or reserved bytes")

    # Footer, §8.
    end = len(data) - 160
    *same, entries, raw_bytes, fingerprint, leaves, leaf_blocks, blocks, root_at, length, root_length, root_checksum, \
        header_crc_again, reserved, footer_crc, mark = unpack_from(FOOTER, data, end)
    need(mark == b"\x89END\r\n\x1a\n", end, "the end mark is not there")
    need(zlib.crc32(data[end : end + 148]) == footer_crc, end, "the checksum of the footer is wrong")
    need(not any(reserved), end, "a reserved byte is not zero")
    need(length == len(data), end, f"the file should have {length} bytes")
    need(same == [file_id, history, seq, time] and header_crc_again == header_crc, end, "header and footer differ")
    need(root_at + root_length == end, end, "the root does not end where the footer starts")

    # Blocks without gaps, §5: (chunks* leaves)+ index+ root.
    at, ordinal, chunks, found, indexes, root = 96, 0, [], [], [], None
    while at < end:
        need(root is None, at, "a block follows the root")
        block = read_block(data, at, end, file_id, ordinal)
        if block.kind in (LEAVES, CHUNK):
            need(not indexes, at, "a data block follows an index block")
            if block.kind == CHUNK:
                chunks.append(block)
            else:
                found.append(read_leaves(block, chunks))
        elif block.kind == INDEX:
            need(found and not chunks, at, "an index block stands too early")
            indexes.append(block)
        else:
            need(indexes, at, "the root stands too early")
            root = block
        at, ordinal = at + block.length, ordinal + 1
    need(root is not None, end, "the root is missing")
    need((root.at, root.length, root.checksum) == (root_at, root_length, root_checksum), end, "this is another root")

    # Fences tile the key space, §2.
    need(found[0].low == b"", found[0].block.at, "the first low fence is not empty")
    need(found[-1].high == b"", found[-1].block.at, "the last leaf has a high fence")
    for one, next_one in zip(found, found[1:]):
        need(one.high and one.high == next_one.low, next_one.block.at, "the low fence is not the high fence before")

    # Index and root state what was found, §7: with it, their order, places and fences are right.
    seen, named = iter(found), []
    for block in indexes:
        stated, _ = read_index(block)
        own = list(islice(seen, len(stated)))
        need(stated == [
            (x.block.at, x.block.ordinal, len(x.entries), x.raw_bytes, x.newest, x.block.length, x.block.checksum, 1,
             x.low) for x in own
        ], block.at, "an index block does not say what its leaf blocks are")
        named.append((block.at, block.ordinal, sum(len(x.entries) for x in own), sum(x.raw_bytes for x in own),
                      max(x.newest for x in own), block.length, block.checksum, len(own), own[0].low))
    need(next(seen, None) is None, root_at, "a leaf block is in no index block")
    stated, spans = read_index(root)
    need(stated == named, root_at, "the root does not say what its index blocks are")
    for i, (span_history, _, _, start, last) in enumerate(spans):
        need(start <= last and (i == 0 or start > spans[i - 1][4]), root_at, "spans of the lineage overlap")
        need(i + 1 < len(spans) or (last, span_history) == (seq, history), root_at, "the lineage misses the cut")

    # Sums, §8 and §9.
    need((entries, raw_bytes, fingerprint, leaves, leaf_blocks, blocks) == (
        sum(len(x.entries) for x in found), sum(x.raw_bytes for x in found),
        sum(x.fingerprint for x in found) % 2**64, sum(x.leaves for x in found), len(found), ordinal,
    ), end, "the footer does not say what the file holds")

    content = [(x.block.at, *entry) for x in found for entry in x.entries]
    names = check_catalogue(content)
    rows = [(names.get(int.from_bytes(key[:4], "big")), key[4:], value, expiry)
            for _, key, value, expiry in content if key[:4] != bytes(4)]
    return rows, {
        "position": {"history": history.hex(), "seq": seq}, "time": time, "entries": entries, "raw_bytes": raw_bytes,
        "fingerprint": f"{fingerprint:016x}", "blocks": blocks, "keyspaces": sorted(names.values()),
    }


def main():
    if len(sys.argv) != 2:
        print("usage: snapshot_reader.py FILE", file=sys.stderr)
        sys.exit(2)
    sys.stdout.reconfigure(encoding="utf-8")
    try:
        with open(sys.argv[1], "rb") as file:
            rows, summary = read_snapshot(file.read())
    except Damage as damage:
        sys.exit("{} at byte {}: {}".format(sys.argv[1], *damage.args))
    for name, key, value, expiry in rows:
        row = {"keyspace": name, "key": key.hex(), "value": value.hex(), "expire_at": expiry}
        print(json.dumps(row, ensure_ascii=False))
    print(json.dumps({"summary": summary}, ensure_ascii=False))


if __name__ == "__main__":
    main()
