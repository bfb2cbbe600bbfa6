"""What generated code is written in: a builder over LLVM IR, its dtypes, the CPU's vectors."""
