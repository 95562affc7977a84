"""CRC-32C (Castagnoli, RFC 3720) by numpy, in blocks: but for its first state, a crc is linear in the message.

The crc of a block is the exclusive or, over its bytes, of what each would give at its place among zeros. The state
that the blocks before left acts like four more bits of bytes: it is added to the first four of the next block.
"""

import functools

import numpy as np
from jaxtyping import UInt8, UInt32

BLOCK = 1024  # bytes: the table takes 1 MB, and stays in a processor's cache
POLYNOMIAL = 0x82F63B78  # its bits reversed
START = bytes.fromhex("54641f64")  # takes a state of zeros to that of ones, in which a message begins


@functools.cache
def _table() -> UInt32[np.ndarray, "block 256"]:
    """[place, value]: the state behind a block of zeros with one such byte, from a state of zeros."""
    state = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        state = (state >> 1) ^ np.where(state & 1, np.uint32(POLYNOMIAL), np.uint32(0))
    table = np.empty((BLOCK, 256), np.uint32)
    table[-1] = state
    for place in range(BLOCK - 2, -1, -1):
        table[place] = (table[place + 1] >> 8) ^ state[table[place + 1] & 255]
    return table


@functools.cache
def _carry() -> list[list[int]]:
    return _table()[:4].tolist()


def _states(rows: UInt8[np.ndarray, "n width"]) -> UInt32[np.ndarray, "n"]:
    """Return the states behind messages of one length, at most BLOCK, each from a state of zeros."""
    places = np.arange(BLOCK - rows.shape[1], BLOCK) * 256
    return np.bitwise_xor.reduce(_table().ravel().take(places + rows, mode="clip"), axis=1)  # clip: unchecked, as fast


def crc(content: bytes) -> int:
    """Return the CRC-32C of a message."""
    whole = START + content
    padded = bytes(-len(whole) % BLOCK) + whole  # zeros leave a state of zeros as it is
    first, second, third, fourth = _carry()
    state = 0
    for block in _states(np.frombuffer(padded, np.uint8).reshape(-1, BLOCK)).tolist():
        low = first[state & 255] ^ second[state >> 8 & 255]
        state = low ^ third[state >> 16 & 255] ^ fourth[state >> 24] ^ block
    return state ^ 0xFFFFFFFF


def masked(content: bytes) -> int:
    """Return the CRC-32C of a message as TFRecord and LevelDB store it: turned, and a constant added."""
    return int(_mask(np.array([crc(content)], np.uint32))[0])


def masked_rows(rows: UInt8[np.ndarray, "n width"]) -> UInt32[np.ndarray, "n"]:
    """Return the masked CRC-32C of many short messages of one length, at most BLOCK - 4."""
    start = np.broadcast_to(np.frombuffer(START, np.uint8), (len(rows), len(START)))
    return _mask(~_states(np.concatenate([start, rows], axis=1)))


def _mask(state: UInt32[np.ndarray, "n"]) -> UInt32[np.ndarray, "n"]:
    return ((state >> 15) | (state << 17)) + np.uint32(0xA282EAD8)
