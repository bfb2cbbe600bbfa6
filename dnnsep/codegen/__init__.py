"""Machine code made at run time through LLVM: no compiler is needed where dnnsep runs."""
