#include "keyprovider/native/host_tpm.hpp"

#include <algorithm>

#include <tss2/tss2_esys.h>
#include <tss2/tss2_mu.h>
#include <tss2/tss2_rc.h>
#include <tss2/tss2_tcti_device.h>
#include <tss2/tss2_tcti_swtpm.h>

#include "crypto/mac.hpp"

namespace coffer {

namespace {

constexpr std::string_view k_device = "device";
constexpr std::string_view k_swtpm = "swtpm:";
constexpr size_t k_max_tcti = 255;
constexpr size_t k_max_secret = 64;

struct FreeByEsys {
    void operator()(void* object) const noexcept { ::Esys_Free(object); }
};
template <class T>
using EsysPtr = std::unique_ptr<T, FreeByEsys>;

using TctiInit = TSS2_RC (*)(TSS2_TCTI_CONTEXT*, size_t*, char const*);

std::string text_of(TSS2_RC code) {
    char const* text = ::Tss2_RC_Decode(code);
    return text ? text : fmt::format("0x{:x}", code);
}

// A TPM's own format-one code, without the number of the parameter, handle or session that it is about (TPM 2.0
// Library, part 2 section 6.6.3).
bool is_integrity_error(TSS2_RC code) noexcept {
    constexpr TSS2_RC k_format_one = 0xBF;
    return (code & TSS2_RC_LAYER_MASK) == 0 && (code & k_format_one) == TPM2_RC_INTEGRITY;
}

Error refused(std::string_view what, TSS2_RC code) {
    return make_error(ErrorCode::KeyUnavailable, "the host's TPM does not {}: {}", what, text_of(code));
}

Error foreign_object() {
    return make_error(ErrorCode::Integrity,
                      "the key was sealed by another TPM, or this one was cleared since, or the file was changed: "
                      "'coffer provider restore' seals the keys of a backup to this host's TPM");
}

// The storage key that everyone makes alike (TCG TPM v2.0 Provisioning Guidance 1.0 section 7.5.1, the ECC template):
// it need not be stored, and is the same one for as long as the owner's seed is.
TPM2B_PUBLIC primary_template() noexcept {
    TPM2B_PUBLIC key{};
    auto& area = key.publicArea;
    area.type = TPM2_ALG_ECC;
    area.nameAlg = TPM2_ALG_SHA256;
    area.objectAttributes = TPMA_OBJECT_FIXEDTPM | TPMA_OBJECT_FIXEDPARENT | TPMA_OBJECT_SENSITIVEDATAORIGIN |
                            TPMA_OBJECT_USERWITHAUTH | TPMA_OBJECT_RESTRICTED | TPMA_OBJECT_DECRYPT | TPMA_OBJECT_NODA;
    auto& parameters = area.parameters.eccDetail;
    parameters.symmetric.algorithm = TPM2_ALG_AES;
    parameters.symmetric.keyBits.aes = 128;
    parameters.symmetric.mode.aes = TPM2_ALG_CFB;
    parameters.scheme.scheme = TPM2_ALG_NULL;
    parameters.curveID = TPM2_ECC_NIST_P256;
    parameters.kdf.scheme = TPM2_ALG_NULL;
    constexpr UINT16 k_coordinate = 32;
    area.unique.ecc.x.size = k_coordinate;
    area.unique.ecc.y.size = k_coordinate;
    return key;
}

// Opens without a password, for whoever has this TPM: it binds to the host, and hides from nobody on it.
TPM2B_PUBLIC sealed_template() noexcept {
    TPM2B_PUBLIC object{};
    auto& area = object.publicArea;
    area.type = TPM2_ALG_KEYEDHASH;
    area.nameAlg = TPM2_ALG_SHA256;
    area.objectAttributes =
        TPMA_OBJECT_FIXEDTPM | TPMA_OBJECT_FIXEDPARENT | TPMA_OBJECT_USERWITHAUTH | TPMA_OBJECT_NODA;
    area.parameters.keyedHashDetail.scheme.scheme = TPM2_ALG_NULL;
    return object;
}

// An object or session in the TPM, which has room for few.
class Loaded {
public:
    Loaded(ESYS_CONTEXT* context, ESYS_TR handle) noexcept : m_context(context), m_handle(handle) {}
    Loaded(Loaded&& other) noexcept
        : m_context(other.m_context), m_handle(std::exchange(other.m_handle, ESYS_TR{ESYS_TR_NONE})) {}
    Loaded& operator=(Loaded&&) = delete;
    ~Loaded() {
        if (m_handle != ESYS_TR_NONE) ::Esys_FlushContext(m_context, m_handle);
    }
    ESYS_TR get() const noexcept { return m_handle; }

private:
    ESYS_CONTEXT* m_context;
    ESYS_TR m_handle;
};

class EsysTpm final : public HostTpm {
public:
    static Result<std::unique_ptr<HostTpm>> open(TctiInit init, char const* settings) {
        std::unique_ptr<EsysTpm> tpm(new EsysTpm);
        size_t size = 0;
        TSS2_RC code = init(nullptr, &size, settings);
        if (code == TSS2_RC_SUCCESS) {
            tpm->m_tcti_memory.resize((size + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t));
            // SAFETY: the TCTI's context is opaque bytes behind this common beginning, in memory aligned for anything.
            auto* tcti = reinterpret_cast<TSS2_TCTI_CONTEXT*>(tpm->m_tcti_memory.data());
            code = init(tcti, &size, settings);
            if (code == TSS2_RC_SUCCESS) tpm->m_tcti = tcti;
        }
        if (code == TSS2_RC_SUCCESS) code = ::Esys_Initialize(&tpm->m_context, tpm->m_tcti, nullptr);
        if (code != TSS2_RC_SUCCESS) return make_error(ErrorCode::Unsupported, "{}", text_of(code));
        return std::unique_ptr<HostTpm>(std::move(tpm));
    }
    EsysTpm(EsysTpm&&) = delete;
    ~EsysTpm() override {
        ::Esys_Finalize(&m_context);
        if (m_tcti && TSS2_TCTI_FINALIZE(m_tcti)) TSS2_TCTI_FINALIZE(m_tcti)(m_tcti);
    }

    Result<TpmSealed> seal(Bytes secret) override {
        COFFER_ASSERT(secret.size() <= k_max_secret);
        auto primary = TRY(make_primary());
        auto session = TRY(start_session(primary, TPMA_SESSION_DECRYPT | TPMA_SESSION_ENCRYPT));
        TPM2B_SENSITIVE_CREATE sensitive{};
        sensitive.sensitive.data.size = static_cast<UINT16>(secret.size());
        std::memcpy(sensitive.sensitive.data.buffer, secret.data(), secret.size());
        auto const wanted = sealed_template();
        TPM2B_DATA const nothing{};
        TPML_PCR_SELECTION const no_pcrs{};
        TPM2B_PRIVATE* private_area = nullptr;
        TPM2B_PUBLIC* public_area = nullptr;
        TPM2B_CREATION_DATA* creation = nullptr;
        TPM2B_DIGEST* hash = nullptr;
        TPMT_TK_CREATION* ticket = nullptr;
        auto const code =
            ::Esys_Create(m_context, primary.get(), session.get(), ESYS_TR_NONE, ESYS_TR_NONE, &sensitive, &wanted,
                          &nothing, &no_pcrs, &private_area, &public_area, &creation, &hash, &ticket);
        crypto::wipe_bytes(std::as_writable_bytes(std::span(sensitive.sensitive.data.buffer)));
        EsysPtr<TPM2B_PRIVATE> const own_private(private_area);
        EsysPtr<TPM2B_PUBLIC> const own_public(public_area);
        EsysPtr<TPM2B_CREATION_DATA> const own_creation(creation);
        EsysPtr<TPM2B_DIGEST> const own_hash(hash);
        EsysPtr<TPMT_TK_CREATION> const own_ticket(ticket);
        if (code != TSS2_RC_SUCCESS) return refused("seal the key", code);
        TpmSealed sealed;
        sealed.public_area = TRY(marshalled(::Tss2_MU_TPM2B_PUBLIC_Marshal, *public_area));
        sealed.private_area = TRY(marshalled(::Tss2_MU_TPM2B_PRIVATE_Marshal, *private_area));
        sealed.primary = TRY(name_of(primary));
        return sealed;
    }

    Result<crypto::SecretBytes> unseal(TpmSealed const& sealed) override {
        TPM2B_PUBLIC public_area{};
        TPM2B_PRIVATE private_area{};
        if (!unmarshalled(::Tss2_MU_TPM2B_PUBLIC_Unmarshal, sealed.public_area, public_area) ||
            !unmarshalled(::Tss2_MU_TPM2B_PRIVATE_Unmarshal, sealed.private_area, private_area))
            return foreign_object();
        auto primary = TRY(make_primary());
        if (TRY(name_of(primary)) != sealed.primary) return foreign_object();
        ESYS_TR handle = ESYS_TR_NONE;
        auto code = ::Esys_Load(m_context, primary.get(), ESYS_TR_PASSWORD, ESYS_TR_NONE, ESYS_TR_NONE, &private_area,
                                &public_area, &handle);
        if (is_integrity_error(code)) return foreign_object();
        if (code != TSS2_RC_SUCCESS) return refused("load the sealed key", code);
        Loaded const object(m_context, handle);
        auto session = TRY(start_session(primary, TPMA_SESSION_ENCRYPT));
        TPM2B_SENSITIVE_DATA* data = nullptr;
        code = ::Esys_Unseal(m_context, object.get(), session.get(), ESYS_TR_NONE, ESYS_TR_NONE, &data);
        EsysPtr<TPM2B_SENSITIVE_DATA> const own(data);
        if (code != TSS2_RC_SUCCESS) return refused("unseal the key", code);
        auto const bytes = std::as_writable_bytes(std::span(data->buffer)).first(data->size);
        auto secret = crypto::SecretBytes::copy_of(bytes);
        crypto::wipe_bytes(bytes);
        return secret;
    }

private:
    EsysTpm() = default;

    Result<Loaded> make_primary() {
        TPM2B_SENSITIVE_CREATE const no_password{};
        TPM2B_DATA const nothing{};
        TPML_PCR_SELECTION const no_pcrs{};
        auto const wanted = primary_template();
        ESYS_TR handle = ESYS_TR_NONE;
        auto const code = ::Esys_CreatePrimary(m_context, ESYS_TR_RH_OWNER, ESYS_TR_PASSWORD, ESYS_TR_NONE,
                                               ESYS_TR_NONE, &no_password, &wanted, &nothing, &no_pcrs, &handle,
                                               nullptr, nullptr, nullptr, nullptr);
        if (code != TSS2_RC_SUCCESS)
            return refused("make a storage key (its owner hierarchy has to be enabled and without a password)", code);
        return Loaded(m_context, handle);
    }

    // Salted to the primary key, so that what is sealed crosses no bus in the clear (part 1 section 21, "session-based
    // encryption"). Whose primary key it is, unseal() has checked.
    Result<Loaded> start_session(Loaded const& primary, TPMA_SESSION attributes) {
        TPMT_SYM_DEF symmetric{};
        symmetric.algorithm = TPM2_ALG_AES;
        symmetric.keyBits.aes = 128;
        symmetric.mode.aes = TPM2_ALG_CFB;
        ESYS_TR handle = ESYS_TR_NONE;
        auto code = ::Esys_StartAuthSession(m_context, primary.get(), ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE,
                                            ESYS_TR_NONE, nullptr, TPM2_SE_HMAC, &symmetric, TPM2_ALG_SHA256, &handle);
        if (code != TSS2_RC_SUCCESS) return refused("start a session", code);
        Loaded session(m_context, handle);
        constexpr TPMA_SESSION k_all = 0xFF;
        code = ::Esys_TRSess_SetAttributes(m_context, handle, attributes | TPMA_SESSION_CONTINUESESSION, k_all);
        if (code != TSS2_RC_SUCCESS) return refused("encrypt a session", code);
        return session;
    }

    Result<ByteVector> name_of(Loaded const& object) {
        TPM2B_NAME* name = nullptr;
        auto const code = ::Esys_TR_GetName(m_context, object.get(), &name);
        EsysPtr<TPM2B_NAME> const own(name);
        if (code != TSS2_RC_SUCCESS) return refused("name its storage key", code);
        auto const bytes = std::as_bytes(std::span(name->name)).first(name->size);
        return ByteVector(bytes.begin(), bytes.end());
    }

    template <class T>
    static Result<ByteVector> marshalled(TSS2_RC (*marshal)(T const*, uint8_t*, size_t, size_t*), T const& value) {
        std::array<uint8_t, sizeof(T)> buffer{}; // structures are never smaller than their wire form
        size_t size = 0;
        auto const code = marshal(&value, buffer.data(), buffer.size(), &size);
        if (code != TSS2_RC_SUCCESS) return refused("give a sealed key", code);
        auto const bytes = std::as_bytes(std::span(buffer)).first(size);
        return ByteVector(bytes.begin(), bytes.end());
    }
    template <class T>
    static bool unmarshalled(TSS2_RC (*unmarshal)(uint8_t const*, size_t, size_t*, T*), ByteVector const& bytes,
                             T& value) {
        size_t used = 0;
        // SAFETY: std::byte and unsigned char may alias any object and have the same size and alignment.
        auto const* data = reinterpret_cast<uint8_t const*>(bytes.data());
        return unmarshal(data, bytes.size(), &used, &value) == TSS2_RC_SUCCESS && used == bytes.size();
    }

    std::vector<std::max_align_t> m_tcti_memory;
    TSS2_TCTI_CONTEXT* m_tcti = nullptr; // in m_tcti_memory, once it is set up
    ESYS_CONTEXT* m_context = nullptr;
};

} // namespace

bool is_simulator(std::string_view tcti) noexcept {
    return tcti.starts_with(k_swtpm);
}

Result<void> check_tcti(std::string_view tcti) {
    auto consists_of = [](std::string_view text, std::string_view characters) {
        return !text.empty() && text.find_first_not_of(characters) == std::string_view::npos;
    };
    bool good = tcti == k_device || (tcti.starts_with("device:/") && tcti.size() <= k_max_tcti &&
                                     std::all_of(tcti.begin(), tcti.end(), [](char c) { return c > ' ' && c <= '~'; }));
    constexpr std::string_view k_host = "swtpm:host=";
    constexpr std::string_view k_port = ",port=";
    if (auto const at = tcti.find(k_port); tcti.starts_with(k_host) && at != std::string_view::npos)
        // An address: a name would be looked up where the keeper may not do that.
        good = tcti.size() <= k_max_tcti &&
               consists_of(tcti.substr(k_host.size(), at - k_host.size()), "0123456789.:abcdefABCDEF") &&
               consists_of(tcti.substr(at + k_port.size()), "0123456789");
    if (good) return {};
    return make_error(ErrorCode::InvalidArgument,
                      "--tcti is 'device:PATH', or 'swtpm:host=ADDRESS,port=PORT' for a TPM simulator");
}

Result<std::unique_ptr<HostTpm>> open_host_tpm(std::string const& tcti) {
    TRY(check_tcti(tcti));
    // The library writes what it is unhappy about to standard error; it is in our own messages.
    ::setenv("TSS2_LOG", "all+none", 0);
    bool const simulator = is_simulator(tcti);
    auto const settings = simulator          ? tcti.substr(k_swtpm.size())
                          : tcti == k_device ? std::string(k_default_tcti.substr(k_device.size() + 1))
                                             : tcti.substr(k_device.size() + 1);
    auto opened = EsysTpm::open(simulator ? ::Tss2_Tcti_Swtpm_Init : ::Tss2_Tcti_Device_Init, settings.c_str());
    if (opened) return opened;
    return make_error(
        ErrorCode::Unsupported,
        "no TPM 2.0 of this host answers ({}: {}). A key provider that requires a host TPM works where its "
        "keys were sealed and nowhere else: its VMs start on no host without a TPM, on no other host, and "
        "not here once the TPM is cleared or replaced, until the provider's backup is restored there. Leave "
        "--require-host-tpm out where that is not wanted",
        tcti, opened.error().message());
}

} // namespace coffer
