"""What generated code is written in: a builder over LLVM's IR, its dtypes, the CPU's instructions."""
