"""Marks of synthetic pictures: one that machines read, and one that people see.

    PACKET        the IPTC digital source type "trainedAlgorithmicMedia" in XMP: the standard property by which search
                  engines and editors know a picture that a trained model made
                  (cv.iptc.org/newscodes/digitalsourcetype). JPEG and WebP take it as it is
    mark_info     it in a PNG's text chunk, whose name is that of the XMP specification, part 3
    marked_gif    a GIF with it, as that says
    watermarked   words in the lower right corner

This file knows no model.
"""

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from PIL.PngImagePlugin import PngInfo

CHUNK = "XML:com.adobe.xmp"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
PACKET = XMP.encode()
MAX_WORDS = 80
HEIGHT, SMALLEST, MARGIN = 0.05, 8.0, 0.02
"""Of the letters over the picture's shorter side; of the letters in pixels; of the rim over the shorter side."""

Picture = PIL.Image.Image


def mark_info() -> PngInfo:
    """The text chunks of a PNG that is marked as synthetic."""
    info = PngInfo()
    info.add_itxt(CHUNK, XMP)
    return info


def marked_gif(data: bytes) -> bytes:
    """A whole GIF with the packet as its last application extension.

    The packet is no chain of sub-blocks, as readers of GIFs expect: behind it stands every length from 255 down, so
    that one who takes any of its letters for a length comes to the end of the extension all the same.
    """
    end = b";"
    return data.removesuffix(end) + b"!\xff\x0bXMP DataXMP" + PACKET + b"\1" + bytes(range(255, -1, -1)) + b"\0" + end


def check_words(words: str) -> str:
    """The words of a watermark; ValueError unless they are 1 to 80 printable characters."""
    if not 1 <= len(words) <= MAX_WORDS or not words.isprintable() or not words.strip():
        raise ValueError(f"a watermark takes 1 to {MAX_WORDS} printable characters, not {words[:MAX_WORDS]!r}")
    return words


def watermarked(picture: Picture, words: str) -> Picture:
    """A copy of a picture with words in its lower right corner, white with a dark rim; itself if there are none."""
    if not words:
        return picture
    copy, short = picture.convert("RGB"), min(picture.size)
    draw, margin = PIL.ImageDraw.Draw(copy), round(MARGIN * short) + 1
    size = max(HEIGHT * short, SMALLEST)
    width = draw.textlength(check_words(words), PIL.ImageFont.load_default(size))
    size *= min(1.0, (picture.width - 2 * margin) / width)
    draw.text(
        (picture.width - margin, picture.height - margin),
        words,
        fill="white",
        font=PIL.ImageFont.load_default(max(size, 1.0)),
        anchor="rs",
        stroke_width=max(round(size / 12), 1),
        stroke_fill="black",
    )
    return copy
