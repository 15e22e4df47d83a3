"""Images between their forms: encoded bytes, uint8 pixels, and the floats of networks.

``decoding`` reads a file into pixels and what stands beside them: ``read_picture`` for cleaning, ``decode``, its short
form, for datasets. ``encoding`` writes them. All names are imported from here.
"""

from raypurify.images.decoding import (
    EXTENSIONS,
    FORMATS,
    LARGEST_PIXELS,
    MAX_PIXELS,
    MAX_PROFILE,
    Picture,
    decode,
    has_known_extension,
    is_named_as_image,
    pixels_of,
    read_picture,
    shape_by_header,
)
from raypurify.images.encoding import encode, encode_png, on_white, thumbnail, to_uint8_nhwc
