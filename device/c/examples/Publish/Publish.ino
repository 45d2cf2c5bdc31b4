/*
 * ESP32: signs a measurement every 10 s and prints the message. Give it to the MQTT library in place of printing it, with QoS 1.
 * The clock has to be set (configTime). Keep the secret in the flash encryption's area or in NVS, not in the sketch.
 */
#include <Arduino.h>
#include <time.h>

#include <bouncer_device.h>
#include <bouncer_mbedtls.h>

static bouncer_text secret;
static bouncer_crypto crypto;
static bouncer_device device;

void setup()
{
    Serial.begin(115200);
    secret = bouncer_string("supersecretkey123");
    bouncer_mbedtls(&crypto, NULL);
    device.id = bouncer_string("sensor_001");
    device.algorithm = BOUNCER_HMAC_SHA256;
    device.secrets = &secret;
    device.secret_count = 1;
    device.crypto = &crypto;
}

void loop()
{
    static char message[512];
    uint8_t random[16];
    char id[BOUNCER_UUID_LENGTH + 1];
    size_t length = 0;
    bouncer_error error = BOUNCER_CRYPTO;

    if (psa_crypto_init() == PSA_SUCCESS && psa_generate_random(random, sizeof random) == PSA_SUCCESS) {
        bouncer_uuid(random, id);
        error = bouncer_sign(&device, (int64_t)time(NULL), bouncer_string(id), bouncer_string("{\"temperature\":22.5}"), message,
                             sizeof message, &length);
    }
    if (error == BOUNCER_OK)
        Serial.write((const uint8_t *)message, length);
    Serial.println(error == BOUNCER_OK ? "" : bouncer_error_name(error));
    delay(10000);
}
