#include "devices/tpm/libtpms_backend.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include <fcntl.h>

#include <libtpms/tpm_library.h>
// After tpm_library.h, which declares their types.
#include <libtpms/tpm_error.h>
#include <libtpms/tpm_nvfilename.h>
#include <libtpms/tpm_tis.h>

#include "base/log.hpp"
#include "devices/tpm/tpm_command.hpp"

namespace coffer::devices {

namespace {

// The process's TPM; libtpms' callbacks carry no context pointer.
std::atomic<LibtpmsBackend*> s_instance{nullptr};

unsigned char const* c_bytes(Bytes bytes) noexcept {
    // SAFETY: unsigned char may alias anything.
    return reinterpret_cast<unsigned char const*>(bytes.data());
}

uint32_t c_size(Bytes bytes) noexcept {
    COFFER_ASSERT(bytes.size() <= UINT32_MAX);
    return static_cast<uint32_t>(bytes.size());
}

void wipe(ByteVector& bytes) noexcept {
    if (!bytes.empty()) explicit_bzero(bytes.data(), bytes.size());
}

// A buffer that libtpms allocated.
struct CBuffer {
    CBuffer() = default;
    CBuffer(CBuffer const&) = delete;
    CBuffer& operator=(CBuffer const&) = delete;
    ~CBuffer() {
        if (data) explicit_bzero(data, size);
        std::free(data);
    }
    ByteVector copy() const {
        auto bytes = std::as_bytes(std::span(data, size));
        return {bytes.begin(), bytes.end()};
    }
    unsigned char* data = nullptr;
    uint32_t size = 0;
};

Error libtpms_error(std::string_view what, TPM_RESULT code) {
    return make_error(ErrorCode::Internal, "the TPM cannot {} (libtpms code {:#x})", what, code);
}

} // namespace

// What libtpms asks of its host. All run inside calls of the backend below, on their thread.
struct LibtpmsCallbacks {
    static LibtpmsBackend& self() noexcept {
        auto* instance = s_instance.load(std::memory_order_acquire);
        COFFER_ASSERT(instance);
        return *instance;
    }

    static TPM_RESULT give(ByteVector const& from, unsigned char** data, uint32_t* length) noexcept {
        auto* copy = static_cast<unsigned char*>(std::malloc(from.size()));
        if (!copy) return TPM_SIZE;
        std::memcpy(copy, from.data(), from.size());
        *data = copy;
        *length = c_size(from);
        return TPM_SUCCESS;
    }

    static TPM_RESULT nvram_init() noexcept { return TPM_SUCCESS; }

    // TPM_RETRY is "there is none", upon which libtpms manufactures a TPM: said while create() wants one made, never
    // otherwise.
    static TPM_RESULT nvram_load(unsigned char** data, uint32_t* length, uint32_t, char const* name) noexcept {
        auto& tpm = self();
        *data = nullptr;
        *length = 0;
        if (std::strcmp(name, TPM_PERMANENT_ALL_NAME) == 0) {
            if (tpm.m_permanent.empty()) return tpm.m_manufacturing ? TPM_RETRY : TPM_FAIL;
            return give(tpm.m_permanent, data, length);
        }
        if (std::strcmp(name, TPM_VOLATILESTATE_NAME) == 0 && !tpm.m_volatile_to_load.empty())
            return give(tpm.m_volatile_to_load, data, length);
        return TPM_RETRY;
    }

    static TPM_RESULT nvram_store(unsigned char const* data, uint32_t length, uint32_t, char const* name) noexcept {
        if (std::strcmp(name, TPM_PERMANENT_ALL_NAME) != 0) return TPM_FAIL;
        auto bytes = std::as_bytes(std::span(data, length));
        self().m_permanent.assign(bytes.begin(), bytes.end());
        self().m_unsettled = true;
        return TPM_SUCCESS;
    }

    static TPM_RESULT nvram_delete(uint32_t, char const* name, TPM_BOOL must_exist) noexcept {
        // The permanent state is not libtpms' to delete, and nothing else is kept.
        bool permanent = std::strcmp(name, TPM_PERMANENT_ALL_NAME) == 0;
        return permanent || must_exist ? TPM_FAIL : TPM_SUCCESS;
    }

    static TPM_RESULT io_init() noexcept { return TPM_SUCCESS; }

    static TPM_RESULT io_locality(TPM_MODIFIER_INDICATOR* locality, uint32_t) noexcept {
        *locality = static_cast<TPM_MODIFIER_INDICATOR>(self().m_locality);
        return TPM_SUCCESS;
    }

    // Not asserted: PPI requests are carried out by the firmware under platform authorization.
    static TPM_RESULT io_physical_presence(TPM_BOOL* presence, uint32_t) noexcept {
        *presence = 0;
        return TPM_SUCCESS;
    }

    static Result<void> install() {
        libtpms_callbacks callbacks{};
        callbacks.sizeOfStruct = sizeof callbacks;
        callbacks.tpm_nvram_init = nvram_init;
        callbacks.tpm_nvram_loaddata = nvram_load;
        callbacks.tpm_nvram_storedata = nvram_store;
        callbacks.tpm_nvram_deletename = nvram_delete;
        callbacks.tpm_io_init = io_init;
        callbacks.tpm_io_getlocality = io_locality;
        callbacks.tpm_io_getphysicalpresence = io_physical_presence;
        if (auto code = TPMLIB_ChooseTPMVersion(TPMLIB_TPM_VERSION_2); code != TPM_SUCCESS)
            return libtpms_error("be a TPM 2.0", code);
        if (auto code = TPMLIB_RegisterCallbacks(&callbacks); code != TPM_SUCCESS)
            return libtpms_error("take callbacks", code);
        return {};
    }
};

Result<std::unique_ptr<LibtpmsBackend>> LibtpmsBackend::create(std::optional<ByteVector> stored,
                                                               TpmManufacture manufacture, NvStore& store) {
    bool has_state = stored && !stored->empty();
    if (has_state && manufacture == TpmManufacture::Yes)
        return Error(ErrorCode::AlreadyExists, "there is stored TPM state already; a new TPM is not made over it");
    if (!has_state && manufacture == TpmManufacture::No)
        return Error(ErrorCode::NotFound, "the stored TPM state is missing or empty; restore it from a backup");

    std::unique_ptr<LibtpmsBackend> tpm(new (std::nothrow) LibtpmsBackend(store));
    COFFER_ASSERT(tpm);
    LibtpmsBackend* none = nullptr;
    if (!s_instance.compare_exchange_strong(none, tpm.get(), std::memory_order_acq_rel)) {
        return Error(ErrorCode::Busy, "this process runs a TPM already; libtpms can hold one only");
    }

    // When libtpms enters failure mode it prints the command, secrets and all, on standard error unless told otherwise.
    tpm->m_silence = TRY(open_file("/dev/null", O_WRONLY));
    TPMLIB_SetDebugFD(tpm->m_silence.get());
    TRY(LibtpmsCallbacks::install());
    if (has_state) {
        tpm->m_permanent = *std::move(stored);
        tpm->m_committed = tpm->m_permanent;
    }
    tpm->m_manufacturing = manufacture == TpmManufacture::Yes;
    auto powered = tpm->power_on();
    tpm->m_manufacturing = false;
    if (!powered) {
        if (has_state)
            return Error(ErrorCode::Integrity, "the stored TPM state cannot be loaded; restore it from a backup");
        return std::move(powered).error();
    }
    if (!has_state) TRY_CONTEXT(tpm->make_durable(), "cannot store a new TPM");
    return tpm;
}

LibtpmsBackend::~LibtpmsBackend() {
    auto* self = this;
    if (s_instance.load(std::memory_order_acquire) == self) {
        TPMLIB_Terminate();
        TPMLIB_SetDebugFD(-1);
        s_instance.compare_exchange_strong(self, nullptr, std::memory_order_acq_rel);
    }
    if (m_response) explicit_bzero(m_response, m_response_capacity);
    std::free(m_response);
    for (auto* state : {&m_permanent, &m_committed, &m_volatile_to_load}) wipe(*state);
}

Result<void> LibtpmsBackend::power_on() {
    auto code = TPMLIB_MainInit();
    wipe(m_volatile_to_load);
    m_volatile_to_load.clear();
    if (code != TPM_SUCCESS) return libtpms_error("power on", code);
    m_failure_reported = false;
    refresh_established();
    return {};
}

void LibtpmsBackend::refresh_established() noexcept {
    TPM_BOOL established = 0;
    if (TPM_IO_TpmEstablished_Get(&established) == TPM_SUCCESS)
        m_established.store(established != 0, std::memory_order_release);
}

Result<size_t> LibtpmsBackend::limit_buffer_size(size_t bytes) {
    uint32_t least = 0;
    auto wanted = static_cast<uint32_t>(std::min<size_t>(bytes, UINT32_MAX));
    uint32_t size = TPMLIB_SetBufferSize(wanted, &least, nullptr);
    if (size > bytes)
        return make_error(ErrorCode::InvalidArgument, "a TPM needs a buffer of {} bytes, not {}", least, bytes);
    return size;
}

LibtpmsBackend::BufferSize LibtpmsBackend::buffer_size() const noexcept {
    BufferSize size{};
    size.now = TPMLIB_SetBufferSize(0, &size.least, &size.most);
    return size;
}

std::string LibtpmsBackend::info(uint32_t flags) const {
    std::unique_ptr<char, decltype(&std::free)> text(TPMLIB_GetInfo(static_cast<TPMLIB_InfoFlags>(flags)), &std::free);
    return text ? text.get() : "";
}

Result<size_t> LibtpmsBackend::execute(Locality locality, Bytes command, MutBytes response) {
    m_locality = locality;
    // A copy, because libtpms decrypts encrypted parameters where they stand.
    m_command.assign(command.begin(), command.end());
    uint32_t size = 0;
    // SAFETY: unsigned char may alias anything.
    auto* input = reinterpret_cast<unsigned char*>(m_command.data());
    auto code = TPMLIB_Process(&m_response, &size, &m_response_capacity, input, c_size(m_command));
    wipe(m_command);
    if (code != TPM_SUCCESS) return libtpms_error("execute a command", code);
    if (size > response.size() || size < k_tpm_header_size)
        return make_error(ErrorCode::Internal, "the TPM's response of {} bytes does not fit its buffer", size);
    std::memcpy(response.data(), m_response, size);
    if (load_be<uint32_t>(response, k_tpm_code_offset) == static_cast<uint32_t>(TpmResponseCode::Failure)) {
        if (!m_failure_reported) log::error("the TPM is in failure mode; it answers no command until the VM restarts");
        m_failure_reported = true;
    }
    refresh_established();
    return size;
}

void LibtpmsBackend::cancel() noexcept {
    TPMLIB_CancelCommand();
}

Result<void> LibtpmsBackend::make_durable() {
    // libtpms also stores what has not changed.
    if (!m_unsettled) return {};
    if (m_permanent != m_committed) {
        TRY(m_store.commit(m_permanent));
        m_committed = m_permanent;
    }
    m_unsettled = false;
    return {};
}

Result<void> LibtpmsBackend::power_cycle() {
    TPMLIB_Terminate();
    return power_on();
}

Result<void> LibtpmsBackend::reset_established(Locality locality) {
    if (locality < Locality::Three)
        return Error(ErrorCode::Permission, "the establishment flag is reset from locality 3 or 4 only");
    m_locality = locality;
    if (auto code = TPM_IO_TpmEstablished_Reset(); code != TPM_SUCCESS)
        return libtpms_error("reset its establishment flag", code);
    refresh_established();
    return {};
}

Result<void> LibtpmsBackend::hash_start() {
    m_locality = Locality::Four;
    if (auto code = TPM_IO_Hash_Start(); code != TPM_SUCCESS) return libtpms_error("start a hash sequence", code);
    refresh_established();
    return {};
}

Result<void> LibtpmsBackend::hash_data(Bytes data) {
    m_locality = Locality::Four;
    if (auto code = TPM_IO_Hash_Data(c_bytes(data), c_size(data)); code != TPM_SUCCESS)
        return libtpms_error("take data of a hash sequence", code);
    return {};
}

Result<void> LibtpmsBackend::hash_end() {
    m_locality = Locality::Four;
    if (auto code = TPM_IO_Hash_End(); code != TPM_SUCCESS) return libtpms_error("end a hash sequence", code);
    refresh_established();
    return {};
}

Result<ByteVector> LibtpmsBackend::volatile_state() {
    CBuffer buffer;
    if (auto code = TPMLIB_GetState(TPMLIB_STATE_VOLATILE, &buffer.data, &buffer.size); code != TPM_SUCCESS)
        return libtpms_error("give its volatile state", code);
    return buffer.copy();
}

Result<ByteVector> LibtpmsBackend::permanent_state() {
    return m_permanent;
}

Result<void> LibtpmsBackend::restore(Bytes permanent, Bytes volatile_state) {
    if (permanent.empty() || volatile_state.empty())
        return Error(ErrorCode::Corrupt, "the suspended TPM's state is incomplete");
    TPMLIB_Terminate();
    auto before = std::move(m_permanent);
    m_unsettled = true;
    m_permanent.assign(permanent.begin(), permanent.end());
    m_volatile_to_load.assign(volatile_state.begin(), volatile_state.end());
    auto powered = power_on();
    // What is durable stays what counts, and a bad image is not committed over it.
    if (!powered) m_permanent = std::move(before);
    return powered;
}

} // namespace coffer::devices
