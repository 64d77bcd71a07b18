"""The tensors of a GGUF file: just enough of a reader to compare two files, written for that alone."""
import mmap
import struct

# Type number: elements of a block, bytes of a block.
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84), 11: (256, 110),
          12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136), 30: (1, 2)}
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def tensors(path):
    """The mapped file, and for each tensor its type number, its shape, where it starts and how long it is."""
    with open(path, "rb") as opened:
        file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    at = 0

    def number(form):
        nonlocal at
        (value,) = struct.unpack_from("<" + form, file, at)
        at += struct.calcsize(form)
        return value

    def string():
        nonlocal at
        length = number("Q")
        at += length
        return file[at - length : at].decode()

    def skip(kind):
        nonlocal at
        if kind == 8:
            string()
        elif kind == 9:
            of, count = number("I"), number("Q")
            if of in SIZES:
                at += SIZES[of] * count
            else:
                for _ in range(count):
                    skip(of)
        else:
            at += SIZES[kind]

    assert file[:4] == b"GGUF" and struct.unpack_from("<I", file, 4)[0] in (2, 3), path
    at = 8
    count, entries = number("Q"), number("Q")
    alignment = 32
    for _ in range(entries):
        key, kind = string(), number("I")
        if key == "general.alignment":
            alignment = number("I")
        else:
            skip(kind)
    found = {}
    for _ in range(count):
        name = string()
        shape = [number("Q") for _ in range(number("I"))]
        dtype, offset = number("I"), number("Q")
        elements = 1
        for dimension in shape:
            elements *= dimension
        block, size = BLOCKS[dtype]
        found[name] = (dtype, shape, offset, elements // block * size)
    start = -(-at // alignment) * alignment
    return file, {name: (dtype, shape, start + offset, length) for name, (dtype, shape, offset, length) in found.items()}
