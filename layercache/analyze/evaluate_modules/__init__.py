"""Metrics as modules of Hugging Face's `evaluate`, shipped so that nothing is fetched.

`evaluate.load("bleu")` downloads code from the hub; `evaluate.load("…/evaluate_modules/bleu.py")` reads it from here.
Each takes `predictions` (a text each) and `references` (a list of texts each) and returns the score of the whole, a
score a text, and for BLEU and chrF the sufficient statistics of every text. layercache makes the classes itself, since
`evaluate.load` copies the code of a module into the user's cache before it imports it.

One `import x` a line, and no comma: evaluate reads the imports of a module with a regular expression.
"""
