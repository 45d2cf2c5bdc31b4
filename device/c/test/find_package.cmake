# A program outside the project, which finds the installed library.
cmake_minimum_required(VERSION 3.16)
project(sample C)
set(CMAKE_C_STANDARD 99)
find_package(bouncer_device 1.0 REQUIRED COMPONENTS core openssl mbedtls wolfssl linux)
add_executable(core ${SAMPLES}/core.c)
target_link_libraries(core PRIVATE bouncer_device::openssl)
add_executable(linux ${SAMPLES}/linux.c)
target_link_libraries(linux PRIVATE bouncer_device::linux)
