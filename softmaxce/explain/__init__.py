"""One image's loss, step by step: the numbers, the terminal's text and the page, in the order of the article."""
