"""Small image files of every kind, and what Pillow makes of them: the reference of pillow.test.ts. Prints one JSON object a
line: name, the file in base64, the upright size, and SHA-256 of the pixels of convert("RGB"), of the image laid on white as
transformers 5 does, and of both filters' resize of the former to 24 x 24."""
import base64
import hashlib
import io
import json
import struct
import sys
import zlib

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

assert Image.__version__.startswith("12."), "the published models' order of resizing is that of Pillow up to 12"
rng = np.random.RandomState(7)


def noise(h, w, c):
    big = np.kron(rng.randint(0, 256, (h // 9 + 1, w // 7 + 1, c)).astype(np.uint8), np.ones((9, 7, 1), np.uint8))[:h, :w]
    out = (big.astype(int) * 3 // 4 + rng.randint(0, 64, (h, w, c))).astype(np.uint8)
    return out if c > 1 else out[:, :, 0]


files = []


def add(name, image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    files.append((name, out.getvalue()))


def exif(orientation):
    e = Image.Exif()
    e[0x0112] = orientation
    return e


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'

for i, (h, w) in enumerate([(1, 1), (1, 7), (5, 1), (2, 3), (31, 33), (24, 24), (23, 25), (24, 70), (90, 24), (40, 57), (9, 99), (120, 5)]):
    add("rgb%d.png" % i, Image.fromarray(noise(h, w, 3)), "PNG")
    add("grey%d.png" % i, Image.fromarray(noise(h, w, 1)), "PNG")
for i, (h, w) in enumerate([(20, 31), (33, 15)]):
    rgb, rgba, la = (Image.fromarray(noise(h, w, c)) for c in (3, 4, 2))
    grey = Image.fromarray(noise(h, w, 1))
    for kind in ("PNG", "WEBP", "TIFF", "AVIF"):
        more = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": "4:4:4"} if kind == "AVIF" else {}
        if kind != "AVIF":
            add("rgb%d.%s" % (i, kind.lower()), rgb, kind, **more)
            add("rgba%d.%s" % (i, kind.lower()), rgba, kind, **({**more, "exact": True} if kind == "WEBP" else more))
    for quality in (60, 95):
        add("q%d-%d.jpg" % (quality, i), rgb, "JPEG", quality=quality)
    add("progressive%d.jpg" % i, rgb, "JPEG", progressive=True)
    add("grey%d.jpg" % i, grey, "JPEG", quality=90)
    add("cmyk%d.jpg" % i, Image.fromarray(noise(h, w, 4), "CMYK"), "JPEG", quality=90)
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        add("cmyk-%s%d.tif" % (compression, i), Image.fromarray(noise(h, w, 4), "CMYK"), "TIFF", compression=compression)
        add("rgb-%s%d.tif" % (compression, i), rgb, "TIFF", compression=compression)
        add("grey-%s%d.tif" % (compression, i), grey, "TIFF", compression=compression)
    add("la%d.png" % i, la, "PNG")
    add("la%d.tif" % i, la, "TIFF")
    add("palette%d.png" % i, rgb.quantize(64), "PNG")
    add("palette-some%d.png" % i, rgb.quantize(16), "PNG", transparency=bytes([0, 128, 255, 7] + [255] * 12))
    add("palette-one%d.png" % i, rgb.quantize(16), "PNG", transparency=3)
    add("palette%d.tif" % i, rgb.quantize(64), "TIFF")
    add("palette%d.gif" % i, rgb.quantize(64), "GIF")
    add("clear%d.gif" % i, rgb.quantize(16), "GIF", transparency=3)
    add("grey%d.gif" % i, grey, "GIF")
    add("bit%d.png" % i, grey.convert("1"), "PNG")
    add("bit%d.tif" % i, grey.convert("1"), "TIFF", compression="group4")
    add("deep%d.png" % i, Image.fromarray((rng.randint(0, 600, (h, w))).astype(np.uint16)), "PNG")
    add("deep%d.tif" % i, Image.fromarray((rng.randint(0, 600, (h, w))).astype(np.uint16)), "TIFF")
    add("float%d.tif" % i, Image.fromarray((rng.rand(h, w) * 300 - 20).astype(np.float32)), "TIFF")
    for channels in (2, 3, 4):  # 16 bits a sample, which Pillow reads but does not write
        deep = rng.randint(0, 65536, (h, w, channels)).astype(">u2")
        rows = b"".join(b"\0" + deep[y].tobytes() for y in range(h))
        files.append(("deep%d-%d.png" % (channels, i), b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0))
                      + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")))
    add("animated%d.gif" % i, grey, "GIF", save_all=True, append_images=[Image.fromarray(noise(h, w, 1))])
for orientation in range(0, 10):
    image = Image.fromarray(noise(12, 17 + orientation, 3))
    raw = exif(orientation).tobytes()
    add("exif%d.jpg" % orientation, image, "JPEG", exif=raw, quality=92)
    add("xmp%d.jpg" % orientation, image, "JPEG", xmp=(XMP % orientation).encode(), quality=92)
    add("exif%d.webp" % orientation, image, "WEBP", exif=raw, lossless=True)
    add("xmp%d.webp" % orientation, image, "WEBP", xmp=(XMP % orientation).encode(), lossless=True)
    out = io.BytesIO()
    image.save(out, "PNG")
    png = out.getvalue()
    hexed = "\nexif\n%8d\n" % len(raw) + "\n".join(raw.hex()[i:i + 72] for i in range(0, 2 * len(raw), 72)) + "\n"
    profile, xmp = b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"
    chunks = {
        "exif": chunk(b"eXIf", raw[6:]), "text": chunk(b"tEXt", profile + hexed.encode()),
        "ztxt": chunk(b"zTXt", profile + b"\0" + zlib.compress(hexed.encode())),
        "xmp": chunk(b"iTXt", xmp + b"\0\0\0\0" + (XMP % orientation).encode()),
        "xmpz": chunk(b"iTXt", xmp + b"\1\0\0\0" + zlib.compress((XMP % orientation).encode())),
        "both": chunk(b"iTXt", xmp + b"\0\0\0\0" + (XMP % 3).encode()) + chunk(b"eXIf", raw[6:]),
    }
    for name, extra in chunks.items():
        files.append(("early-%s%d.png" % (name, orientation), png[:33] + extra + png[33:]))
        files.append(("late-%s%d.png" % (name, orientation), png[:-12] + extra + png[-12:]))


def gif(version, transparent, local):
    """A first frame of 4 x 3 at (2, 1) on a canvas of 8 x 6, as no library writes it."""
    palette = bytes([10, 20, 30, 200, 100, 50, 90, 180, 250, 1, 2, 3])
    data = b"GIF" + version + struct.pack("<HHBBB", 8, 6, 0x81 if not local else 1, 0, 0) + (b"" if local else palette)
    if transparent is not None:
        data += b"\x21\xf9\x04" + struct.pack("<BHB", 1, 5, transparent) + b"\0"
    data += b"\x2c" + struct.pack("<HHHHB", 2, 1, 4, 3, 0x81 if local else 0) + (palette if local else b"")
    bits, out, count = 0, bytearray(), 0
    for code in [4] + [c for i in range(12) for c in (i % 4, 4)] + [5]:  # clear codes keep the width at three bits
        bits |= code << count
        count += 3
        while count >= 8:
            out.append(bits & 255)
            bits >>= 8
            count -= 8
    out.append(bits & 255)
    return data + b"\x02" + bytes([len(out)]) + bytes(out) + b"\0\x3b"


for local in (False, True):
    for transparent in (None, 0, 2):
        files.append(("offset%s-%s.gif" % ("-local" if local else "", transparent), gif(b"89a", transparent, local)))


def digest(image):
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()


for name, data in files:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    rgb = image.convert("RGB")
    white = rgb
    if image.mode != "RGB":
        rgba = image.convert("RGBA")
        white = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255)), rgba).convert("RGB")
    print(json.dumps({"name": name, "file": base64.b64encode(data).decode(), "width": rgb.width, "height": rgb.height,
                      "drop": digest(rgb), "white": digest(white),
                      **{f: digest(rgb.resize((24, 24), n)) for f, n in (("bilinear", 2), ("bicubic", 3))}}))
