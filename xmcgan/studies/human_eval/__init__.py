"""Blind ranking by people: a page that asks for it, and what the answers say."""
