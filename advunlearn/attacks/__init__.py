"""Attacks: the adversary inside training (`pgd`), and the test attacks (`registry` has them by name)."""
