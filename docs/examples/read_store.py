"""Read features of one video from a store: `python docs/examples/read_store.py STORE [VIDEO]`."""

from __future__ import annotations

import argparse

from pipeline import Store


def main() -> None:
    """Print the products of a store, and the shape of one video's first appearance maps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("video", nargs="?")
    arguments = parser.parse_args()

    store = Store(arguments.store)
    for summary in store.summarize():
        print(summary)

    appearance = store.open("appearance")
    video = arguments.video or appearance.keys()[0]

    # Which frames of the video the rows show, and when, in seconds.
    columns = appearance.columns(video)
    frame_indices = columns["frame"]
    seconds = columns["second"]

    # Any rows in any order: [3, H, W, C] float16.
    maps = appearance.read(video, [0, 1, 2])
    print(f"video {video}: {len(frame_indices)} frame maps, the last at {seconds[-1]:.2f} s")
    print(f"three maps: {maps.shape} {maps.dtype}")


if __name__ == "__main__":
    main()
