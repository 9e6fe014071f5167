"""Export: a variant out of a package as files that an app or a firmware builds in, with a page that says how."""
