"""The documentation site: its pages, its pictures, its notebooks, and the checks of all three.

`python -m website` builds the site. The other commands are `website.pictures`, `website.notebooks`,
`website.blocks` and `website.check`; each answers `--help`.
"""
