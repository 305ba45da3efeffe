"""Whose fault an error is."""


class MqvaeError(ValueError):
    """Something the user can mend: an option, a file, a shape, a missing download.

    Its message names the thing, what was expected, what came, and what to do. The program prints
    that message alone and exits with code 2; every other exception is a fault of mqvae's, exit
    code 1. It is a ValueError, so that code which catches one keeps working.
    """
