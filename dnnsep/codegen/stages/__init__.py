"""The steps of a layer, one file each: how it is emitted, packed, costed, computed naively."""
