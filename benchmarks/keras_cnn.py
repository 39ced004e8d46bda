"""What `benchmarks/own.py` compares with: a plain Keras network on a folder of images, as one writes it in an hour.

    python benchmarks/keras_cnn.py FOLDER --size=48 --rate=1e-3 --seconds=200 [--mirror]

Four convolutions with batch normalisation, Adam whose rate falls linearly, light augmentation; the epoch with the
highest validation accuracy is tested. It trains until the process has taken so many processor seconds, and prints JSON.
"""

import argparse
import json
import time

import tensorflow as tf
import tf_keras
from tf_keras import layers

WIDTHS = (32, 64, 128, 256)
BATCH = 32
SEED = 0


def images(folder: str, split: str, size: int, subset: str | None = None) -> tf.data.Dataset:
    """A split as Keras reads it, decoded once; a tenth of `train` is held out."""
    held_out = {"validation_split": 0.1, "subset": subset, "seed": SEED} if subset else {"shuffle": False}
    return tf_keras.utils.image_dataset_from_directory(
        f"{folder}/{split}", image_size=(size, size), batch_size=BATCH, **held_out
    )


def network(classes: int, size: int, mirror: bool) -> tf_keras.Model:
    """The network, with its augmentation."""
    model = tf_keras.Sequential([layers.Input((size, size, 3))])
    if mirror:
        model.add(layers.RandomFlip("horizontal"))
    for layer in (layers.RandomTranslation(0.1, 0.1), layers.RandomZoom(0.1), layers.Rescaling(1 / 127.5, -1)):
        model.add(layer)
    for width in WIDTHS:
        model.add(layers.Conv2D(width, 3, padding="same", use_bias=False))
        for layer in (layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D()):
            model.add(layer)
    for layer in (layers.GlobalAveragePooling2D(), layers.Dropout(0.3), layers.Dense(classes)):
        model.add(layer)
    return model


def main() -> None:
    """Trains, tests and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="with train/CLASS/ and test/CLASS/")
    parser.add_argument("--size", type=int, required=True, help="pixels")
    parser.add_argument("--rate", type=float, required=True, help="learning rate of Adam")
    parser.add_argument("--seconds", type=float, required=True, help="processor seconds")
    parser.add_argument("--mirror", action="store_true")
    arguments = parser.parse_args()

    tf_keras.utils.set_random_seed(SEED)
    train = images(arguments.folder, "train", arguments.size, "training")
    model = network(len(train.class_names), arguments.size, arguments.mirror)
    train = train.cache().shuffle(100, seed=SEED).prefetch(2)
    validation = images(arguments.folder, "train", arguments.size, "validation").cache()
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(arguments.rate), loss, metrics=["accuracy"])
    best, epochs, weights = -1.0, 0, model.get_weights()
    while (spent := time.process_time() / arguments.seconds) < 1:
        model.optimizer.learning_rate.assign(arguments.rate * max(1 - spent, 0.02))
        model.fit(train, verbose=0)
        epochs += 1
        _, accuracy = model.evaluate(validation, verbose=0)
        if accuracy >= best:
            best, weights = accuracy, model.get_weights()
    seconds = time.process_time()
    model.set_weights(weights)
    _, accuracy = model.evaluate(images(arguments.folder, "test", arguments.size), verbose=0)
    print(json.dumps({"accuracy": accuracy, "validation": best, "epochs": epochs, "seconds": seconds}))


if __name__ == "__main__":
    main()
