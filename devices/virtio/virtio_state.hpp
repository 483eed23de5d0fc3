// What is saved of every virtio device, nested in its own state. Tags are never reused.
#pragma once

#include <vector>

#include "devices/pci/pci_state.hpp"
#include "devices/virtio/virtqueue.hpp"

namespace coffer::devices {

struct VirtioState {
    PciState pci;
    uint32_t device_feature_select = 0;
    uint32_t driver_feature_select = 0;
    uint64_t driver_features = 0;
    uint8_t status = 0;
    uint8_t isr = 0;
    uint16_t config_vector = virtio::k_no_vector;
    uint16_t queue_select = 0;
    std::vector<VirtQueueState> queues;

    template <class V>
    void fields(V& v) {
        v.required(1, pci);
        v.required(2, device_feature_select);
        v.required(3, driver_feature_select);
        v.required(4, driver_features);
        v.required(5, status);
        v.required(6, isr);
        v.required(7, config_vector);
        v.required(8, queue_select);
        v.required(9, queues);
    }
};

struct VirtioConsoleState {
    VirtioState virtio;
    bool device_ready = false;
    bool port_ready = false;
    bool guest_open = false;
    std::vector<ByteVector> control; // messages for which the driver had no buffer

    template <class V>
    void fields(V& v) {
        v.required(1, virtio);
        v.required(2, device_ready);
        v.required(3, port_ready);
        v.required(4, guest_open);
        v.required(5, control);
    }
};

struct VirtioRngState {
    VirtioState virtio;

    template <class V>
    void fields(V& v) {
        v.required(1, virtio);
    }
};

} // namespace coffer::devices
