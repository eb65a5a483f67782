"""Embedded worlds: faces whose every attribute is known, and what is trained and measured on them.

The rest of `training` never imports this.
"""
