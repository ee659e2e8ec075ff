"""Detection of stale entries: videos whose file changed, text shards whose sentences changed."""

from __future__ import annotations

import time

from pipeline.callbacks import MessageCallback
from pipeline.extraction.file_digests import FileDigestCache
from pipeline.extraction.plan import VideoIndex
from pipeline.store import ProductReader, ShardInfo

MESSAGE_INTERVAL_SECONDS = 10.0


def find_stale_videos(
    reader: ProductReader,
    index: VideoIndex,
    digest_cache: FileDigestCache,
    on_message: MessageCallback,
) -> set[str]:
    """Find stored videos whose file has changed.

    Args:
        reader: reader of a visual product.
        index: the index; stored videos outside it are not checked.
        digest_cache: digests of the video files.
        on_message: called with the progress every `MESSAGE_INTERVAL_SECONDS`.

    Returns:
        Ids of the changed videos. A file that cannot be read does not count as changed.
    """
    stored_videos = sorted(video for video in reader.product.videos if video in index.paths)
    stale_videos = set()
    last_message_time = time.monotonic()
    for num_checked, video in enumerate(stored_videos):
        if time.monotonic() - last_message_time > MESSAGE_INTERVAL_SECONDS:
            last_message_time = time.monotonic()
            on_message(
                f"{reader.name}: {num_checked} of {len(stored_videos)} video files compared "
                "with what was encoded"
            )
        digest = digest_cache.get_digest(index.paths[video])
        if digest is not None and digest != reader.facts(video).get("digest"):
            stale_videos.add(video)
    return stale_videos


def find_stale_text_shards(reader: ProductReader, index: VideoIndex) -> set[str]:
    """Find text shards that do not agree with the index.

    Args:
        reader: reader of a product of sentences.
        index: the index.

    Returns:
        Names of the shards with a sentence that was changed, removed or assigned to another video,
        and of those that lack a sentence of their videos.
    """
    stale_shards = set()
    for name, info in reader.product.shards.items():
        if not _agrees_with_index(reader, info, index):
            stale_shards.add(name)
    return stale_shards


def _agrees_with_index(reader: ProductReader, info: ShardInfo, index: VideoIndex) -> bool:
    """Return True if a text shard holds exactly the sentences of its videos."""
    sentences: list[tuple[str, str]] = []
    for video in info.videos:
        sentences += index.sentences.get(video, ())
    if info.entries != len(sentences):
        return False
    return all(key in reader and reader.facts(key).get("text") == text for key, text in sentences)
