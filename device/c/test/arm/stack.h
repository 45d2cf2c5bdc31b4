/* Prints how much stack the functions of the library use. */
void measure_stack(void);
