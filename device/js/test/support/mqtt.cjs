// mqtt.js for programs that import it by its name: see mqtt.js here.
const Module = require('node:module');

process.env.NODE_PATH = [process.env.NODE_PATH, '/usr/share/nodejs'].filter(Boolean).join(':');
Module._initPaths();
module.exports = require('mqtt');
