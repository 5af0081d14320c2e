"""The tokenizer against others: the same text, vocabularies of one size, turns taken, CPU time."""
