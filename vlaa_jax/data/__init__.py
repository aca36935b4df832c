"""Host side of a batch: records, images, chat, planning, packing, loading."""
