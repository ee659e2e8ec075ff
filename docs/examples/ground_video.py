"""Ground sentences in one video.

Run `python docs/examples/ground_video.py VIDEO SENTENCE ... [--run RUN]`.
"""

from __future__ import annotations

import argparse

from grounding import Grounder


def main() -> None:
    """Print one line per sentence: its span in seconds, its score and the first box."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video")
    parser.add_argument("sentences", nargs="+")
    parser.add_argument("--run", default="runs/shapes")
    arguments = parser.parse_args()

    grounder = Grounder(arguments.run)
    result = grounder.ground(arguments.video, arguments.sentences)

    for query in result.queries:
        begin, end = query.span_seconds
        frame_index, *box = query.boxes[0]
        print(f"{query.text}: {begin:.1f} s to {end:.1f} s, score {query.score:.2f}")
        print(f"  frame {frame_index}: x1, y1, x2, y2 = {box}")


if __name__ == "__main__":
    main()
