"""The words for faces: attributes, captions, questions, and what of them can be seen. Rules only."""
