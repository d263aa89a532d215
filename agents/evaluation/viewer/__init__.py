"""Pictures of what an agent did: episodes of run folders as one page, in a file or served live.

`overview.py` and `story.py` make plain data of what `records.py` reads; `document.py` puts it into
a page with what is in `assets/`; `live.py` serves that page while a run writes on.
"""
