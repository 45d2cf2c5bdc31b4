# A Cortex-M4 with picolibc, whose input and output go over semihosting to QEMU.
set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_SYSTEM_PROCESSOR arm)
set(CMAKE_C_COMPILER arm-none-eabi-gcc)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_C_FLAGS_INIT "--specs=/usr/lib/picolibc/arm-none-eabi/picolibc.specs -mcpu=cortex-m4 -mthumb -ffunction-sections -fdata-sections")
