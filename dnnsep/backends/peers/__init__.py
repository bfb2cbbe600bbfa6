"""The engines that a user could pick instead, which dnnsep is measured beside."""
