"""The rules that bring an ATen graph into its canonical form, by what they are about."""
