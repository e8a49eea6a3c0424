"""What `benchmarks/fuzz_data.py` tries: valid images and records, and random changes of them."""

import io
import json
import random
import struct
import zlib

TARGETS = ("picture", "lines", "list")
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
TEXTS = [
    "what?",
    "<image>",
    "</s>",
    "<s><pad>",
    "<|im_end|>",
    "\ud800",
    "\0",
    "",
    " \n",
    "é\u202e\U0001f600",
    "a" * 3000,
]


def pictures() -> list[bytes]:
    """Valid ones of every format, mode and compression."""
    from PIL import Image

    image = Image.effect_mandelbrot((24, 16), (-2, -1, 1, 1), 50).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    ways = [(image.convert(mode), "PNG", {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")]
    ways += [(image.convert(mode), "JPEG", {}) for mode in ("RGB", "L", "CMYK")]
    ways += [(image, "JPEG", dict(progressive=True, exif=exif)), (image, "WEBP", dict(lossless=True))]
    ways += [(image.convert(mode), "BMP", {}) for mode in ("RGB", "P", "1")]
    ways += [(image, "TIFF", dict(compression=kind)) for kind in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
    ways += [(image.convert(mode), "TIFF", {}) for mode in ("CMYK", "I;16", "F", "1", "P")]
    frames = dict(save_all=True, append_images=[image.rotate(90)])
    ways += [(image, kind, frames) for kind in ("GIF", "PNG", "WEBP", "TIFF")] + [(image.convert("P"), "GIF", {})]
    found = []
    for picture, kind, options in ways:
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        found.append(stream.getvalue())
    return found


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    data = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 2, 4, 16])):
        at, way = rng.randrange(len(data) + 1), rng.randrange(7)
        if way == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[at : at + 1] = bytes([rng.choice(NUMBERS) & 0xFF])
        elif way == 2:
            size = rng.choice("BHI")
            value = rng.choice(NUMBERS) & ((1 << 8 * struct.calcsize(size)) - 1)
            data[at : at + struct.calcsize(size)] = struct.pack(rng.choice("<>") + size, value)
        elif way == 3:
            del data[at : at + rng.choice([1, 4, 50])]
        elif way == 4:
            data[at:at] = data[at : at + rng.choice([1, 8, 200])] * rng.choice([1, 1, 40])
        elif way == 5:
            other = rng.choice(others)
            begin = rng.randrange(len(other))
            data[at : at + 20] = other[begin : begin + rng.choice([2, 20, 200])]
        elif rng.random() < 0.3:
            del data[at:]
    return checked(bytes(data)) if rng.random() < 0.7 else bytes(data)


def checked(data: bytes) -> bytes:
    """A PNG file with the checksums that its chunks should have, so that what is in them is looked at."""
    if data[:4] != b"\x89PNG":
        return data
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        size = struct.unpack_from(">I", data, at)[0]
        body = data[at + 4 : at + 8 + size]
        parts += [data[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + size
    return b"".join(parts)


def anything(rng: random.Random, depth: int = 0):
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind < 6:
        return [None, rng.random() < 0.5, rng.choice(NUMBERS), rng.random() * 1e300, rng.choice(TEXTS), "a.png"][kind]
    if kind < 8:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(["from", "value", "image", *TEXTS]): anything(rng, depth + 1) for _ in range(rng.randrange(4))}


def record(rng: random.Random) -> bytes:
    """Mostly a record: each part of it is now and then anything else."""

    def odd(value):
        return anything(rng) if rng.random() < 0.06 else value

    def message(i: int):
        text = "".join(rng.choices(TEXTS, k=rng.randrange(1, 4)))
        return odd({"from": odd(("human", "gpt")[i % 2]), "value": odd(text)})

    messages = [message(i) for i in range(rng.choice([0, 1, 2, 2, 2, 4, 6]))]
    names = rng.choice(["a.png", None, ["a.png"] * rng.randrange(4), "../a.png", "no.png", "."])
    return json.dumps(odd(dict(image=odd(names), conversations=odd(messages)))).encode()


class Inputs:
    """(target, bytes) from a seed."""

    def __init__(self, seed: int):
        self.rng, self.pictures = random.Random(seed), pictures()

    def __next__(self) -> tuple[str, bytes]:
        rng, target = self.rng, self.rng.choices(TARGETS, weights=[6, 3, 1])[0]
        if target == "picture":
            return target, mutate(rng.choice(self.pictures), self.pictures, rng)
        lines = [record(rng) for _ in range(rng.randrange(1, 4))]
        text = b"\n".join(lines) if target == "lines" else b"[" + b",\n".join(lines) + b"]"
        return target, mutate(text, lines, rng) if rng.random() < 0.5 else text
