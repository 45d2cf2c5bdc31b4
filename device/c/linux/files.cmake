set(linux_sources linux/bundle.c linux/commands.c linux/connection.c linux/delivery.c linux/device.c linux/files.c linux/journal.c)
