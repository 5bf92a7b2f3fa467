"""From a folder of pictures to batches: scan, captions, buckets, the plan of an epoch, caches on disk, the loader.

`scan`, `captions`, `buckets` and `plan` run without torch, so that a wrong data folder is reported at once.
"""
