// What the other end of a migration says: frames one behind the other, each decoded as the side that gets it would.
#include "vmm/migrate/message.hpp"

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    using namespace coffer;
    namespace migrate = vmm::migrate;
    Bytes input = std::as_bytes(std::span(data, size));
    while (input.size() >= migrate::k_header_size) {
        auto const header = migrate::decode_header(input.first(migrate::k_header_size));
        if (!header) break;
        input = input.subspan(migrate::k_header_size);
        auto const body = input.first(std::min<size_t>(header->size, input.size()));
        input = input.subspan(body.size());
        switch (header->type) {
        case migrate::MessageType::Channel: (void)migrate::decode_channel(body).has_value(); break;
        case migrate::MessageType::Hello:
            if (auto hello = migrate::decode_hello(body)) {
                // What was accepted is within the bounds that the receiver relies on.
                COFFER_ASSERT(hello->platform.memory <= uint64_t{1} << 43 && hello->platform.cpus <= 1024);
                COFFER_ASSERT(hello->firmware_size != 0 && hello->firmware_size <= migrate::k_max_firmware);
                COFFER_ASSERT(hello->disks.size() == hello->platform.disk_sizes.size());
                COFFER_ASSERT(hello->name.find('/') == std::string::npos && !hello->name.starts_with('.'));
            }
            break;
        case migrate::MessageType::Welcome: {
            migrate::WelcomeMessage welcome;
            (void)decode_fields(body, welcome).has_value();
            break;
        }
        case migrate::MessageType::Proof: {
            migrate::ProofMessage proof;
            (void)decode_fields(body, proof).has_value();
            break;
        }
        case migrate::MessageType::Mark: {
            migrate::MarkMessage mark;
            (void)decode_fields(body, mark).has_value();
            break;
        }
        case migrate::MessageType::File:
            if (auto file = migrate::decode_file(body)) {
                COFFER_ASSERT(file->name.find('/') == std::string::npos && !file->name.starts_with('.'));
                COFFER_ASSERT(file->name != "lock");
            }
            break;
        case migrate::MessageType::FilePart:
            if (auto part = migrate::decode_file_part(body)) {
                COFFER_ASSERT(part->name.find('/') == std::string::npos && part->offset <= UINT64_MAX - part->size);
            }
            break;
        case migrate::MessageType::Memory: (void)vmm::decode_batch(body, 256).has_value(); break;
        case migrate::MessageType::State: (void)vmm::decode_machine_state(body).has_value(); break;
        case migrate::MessageType::Prepare: (void)migrate::decode_prepare(body).has_value(); break;
        case migrate::MessageType::Failure: {
            auto const error = migrate::decode_failure(body);
            for (char c : error.message()) COFFER_ASSERT(static_cast<unsigned char>(c) >= ' ' && c != 0x7F);
            break;
        }
        case migrate::MessageType::Ask: (void)migrate::decode_ask(body).has_value(); break;
        case migrate::MessageType::Standing: (void)migrate::decode_standing(body).has_value(); break;
        default: break;
        }
    }
    return 0;
}
