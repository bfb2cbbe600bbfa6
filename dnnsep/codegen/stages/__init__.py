"""The steps of a layer, one file each: how a step is emitted, packed, costed and computed naively."""
