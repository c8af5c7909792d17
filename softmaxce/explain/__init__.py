"""One image's loss, step by step: the numbers, in the order of the article. `softmaxce.report` presents them."""
