"""Attacks: the adversary inside training (`pgd`) and the test attack (`unlearndiffatk`)."""
