/* Just enough of Arduino to compile the examples on the host. */
#ifndef ARDUINO_H
#define ARDUINO_H

#include <cstddef>
#include <cstdint>

struct Port {
    void begin(unsigned long);
    std::size_t write(const std::uint8_t *, std::size_t);
    std::size_t println(const char *);
};
extern Port Serial;
void delay(unsigned long);

#endif
