# %% [markdown]
# # Fixture lesson 91: One exercise

# %%
from llama_adapter_edu.course import check

# %% [markdown]
# ## Add

# %% [markdown] tags=["card"]
# ### Exercise 91.1 · Add one
#
# *easy ●○○ · 1 minutes*
#
# Add one to a number.
#
# <details><summary>Hint 1: direction</summary>
#
# Add.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# There are none.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `return n + __`
#
# </details>


# %% tags=["exercise"]
def add_one(n: int) -> int:
    """n + 1."""
    ### BEGIN SOLUTION
    return n + 1
    ### END SOLUTION


# %% tags=["check"]
@check("91.1", "add_one")
def _():
    assert add_one(1) == 2
    assert add_one(-1) == 0, "add_one(-1) is 0"


# %% [raw] tags=["wrong"] says="this does not hold: assert add_one(1) == 2"
"""
def add_one(n): return n
"""

# %% [raw] tags=["wrong"] says="add_one(-1) is 0"
"""
def add_one(n): return abs(n) + 1
"""

# %% [raw] tags=["right"]
"""
def add_one(n): return 1 + n
"""

# %% [raw] tags=["right"]
"""
def add_one(n): return n - -1
"""

# %%
print(add_one(41))
