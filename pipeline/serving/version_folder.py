"""The folder of an exported version, `BASE/VERSION/`: a SavedModel, and all that its users need beside it."""

import json
import os
import tempfile
from collections.abc import Mapping

import tensorflow as tf

from pipeline import files
from pipeline.serving import golden, labels, metadata, warmup
from pipeline.serving.servable import DEFAULT, Servable, Settings

EXTRA = "assets.extra"  # next to TensorFlow's `assets/`: what the model itself does not need

Graphs = Mapping[str, tf.types.experimental.ConcreteFunction]


def write(servable: Servable, settings: Settings, origin: metadata.Origin, base: str, extras: str = "") -> str:
    """Writes the next numbered version folder of `base`, whole or not at all.

    In an object store a folder comes into being file by file: a version that has no `saved_model.pb` is not whole. The
    files in the folder `extras` go to `assets.extra/`.

    Returns:
      The version folder, `base/1` for the first.
    """
    tf.io.gfile.makedirs(base)
    versions = [int(name) for name in map(_plain, tf.io.gfile.listdir(base)) if name.isdigit()]
    version = max(versions, default=0) + 1
    final, partial = os.path.join(base, str(version)), os.path.join(base, f"partial-{version}")
    if tf.io.gfile.exists(partial):
        files.remove_folder(partial)
    graphs = servable.graphs()
    _save(servable, graphs, settings, partial)
    tf.io.gfile.makedirs(os.path.join(partial, EXTRA))
    for name in sorted(os.listdir(extras)) if extras else []:
        tf.io.gfile.copy(os.path.join(extras, name), os.path.join(partial, EXTRA, name))
    _write_extras(graphs, settings, origin, partial, os.path.basename(files.absolute(base).rstrip("/")))
    if files.is_remote(final):
        _move_files(partial, final)
    else:
        tf.io.gfile.rename(partial, final)
    return final


def _save(servable: Servable, graphs: Graphs, settings: Settings, folder: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        path = os.path.join(temporary, labels.FILE)
        _write(path, labels.content(settings.classes))
        servable.labels = tf.saved_model.Asset(path)
        tf.saved_model.save(servable, folder, signatures=graphs)


def _write_extras(graphs: Graphs, settings: Settings, origin: metadata.Origin, folder: str, name: str) -> None:
    extra = os.path.join(folder, EXTRA)
    images = golden.images()
    tf.io.gfile.makedirs(os.path.join(extra, golden.FOLDER))
    for image, data in images.items():
        _write(os.path.join(extra, golden.FOLDER, image), data)
    outputs = graphs[DEFAULT](image_bytes=tf.constant(list(images.values())))
    _write(
        os.path.join(extra, golden.FOLDER, golden.ANSWERS_FILE), golden.to_json(golden.answers(list(images), outputs))
    )
    with tf.io.TFRecordWriter(os.path.join(extra, warmup.FILE)) as writer:
        for request in warmup.requests(settings.size):
            writer.write(request)
    described = metadata.describe(graphs, settings, origin)
    _write(os.path.join(folder, metadata.CARD), metadata.card(described, name))
    _write(os.path.join(extra, metadata.FILE), _json({**described, "sha256": _digests(folder)}))


def _digests(folder: str) -> dict[str, str]:
    return {path: files.digest(os.path.join(folder, path)) for path in sorted(_paths(folder))}


def _paths(folder: str) -> list[str]:
    """The paths of all files in `folder`, relative to it."""
    paths = [os.path.join(place, name) for place, _, names in tf.io.gfile.walk(folder) for name in names]
    # Object stores list a folder as a file '' in itself, and `ram://` lists `assets.extra` as a file in `assets`.
    return [path.removeprefix(folder).lstrip("/") for path in paths if path[-1] != "/" and tf.io.gfile.exists(path)]


def _write(path: str, content: str | bytes) -> None:
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def _json(content: object) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _move_files(source: str, target: str) -> None:
    """Moves a SavedModel in an object store, which cannot rename folders: the file that makes it one comes last."""
    last = tf.saved_model.SAVED_MODEL_FILENAME_PB
    for path in [*sorted(set(_paths(source)) - {last}), last]:
        moved = os.path.join(target, path)
        tf.io.gfile.makedirs(os.path.dirname(moved))
        tf.io.gfile.rename(os.path.join(source, path), moved)
    files.remove_folder(source)


def _plain(name: str) -> str:
    return name.rstrip("/")
