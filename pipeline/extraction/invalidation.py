"""What in a store is no longer what was encoded: videos whose file has changed, shards of text that hold other words."""

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
    """Videos of the index whose file is another one now. One that cannot be read says nothing against its features."""
    held = sorted(video for video in reader.product.videos if video in index.paths)
    stale, said = set(), time.monotonic()
    for count, video in enumerate(held):
        if time.monotonic() - said > MESSAGE_INTERVAL_SECONDS:
            said = time.monotonic()
            on_message(
                f"{reader.name}: {count} of {len(held)} video files compared with what was encoded"
            )
        now = digest_cache.get_digest(index.paths[video])
        if now is not None and now != reader.facts(video).get("digest"):
            stale.add(video)
    return stale


def find_stale_text_shards(reader: ProductReader, index: VideoIndex) -> set[str]:
    """Shards of text with a sentence that was changed, removed or given to another video, or without one that was added."""

    def same(info: ShardInfo) -> bool:
        wanted = [sentence for video in info.videos for sentence in index.sentences.get(video, ())]
        return info.entries == len(wanted) and all(
            key in reader and reader.facts(key).get("text") == text for key, text in wanted
        )

    return {name for name, info in reader.product.shards.items() if not same(info)}
